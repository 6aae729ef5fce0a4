/* Weight files of other kinds, known by their names, each with what to do about it. */
#include <dirent.h>
#include <string.h>

#include "io/folder.h"

typedef struct foreign_kind {
    const char *glob, *code, *what, *remedy;
} foreign_kind;

#define FROM_PYTORCH                                                                               \
    "convert it in Python: AutoModelForCausalLM.from_pretrained(FOLDER)"                           \
    ".save_pretrained(NEW_FOLDER, safe_serialization=True)"

static const foreign_kind kinds[] = {
    {"*.gguf", "checkpoint.gguf", "a GGUF file (llama.cpp)",
     "get the model's original safetensors files"},
    {"*.ggml", "checkpoint.gguf", "a GGML file (llama.cpp)",
     "get the model's original safetensors files"},
    {"*.bin", "checkpoint.pickle", "a PyTorch pickle, which can run code when loaded",
     FROM_PYTORCH},
    {"*.pt", "checkpoint.pickle", "a PyTorch pickle, which can run code when loaded", FROM_PYTORCH},
    {"*.pth", "checkpoint.pickle", "a PyTorch pickle, which can run code when loaded",
     FROM_PYTORCH},
    {"*.ckpt", "checkpoint.pickle", "a PyTorch pickle, which can run code when loaded",
     FROM_PYTORCH},
    {"*.pkl", "checkpoint.pickle", "a Python pickle, which can run code when loaded", FROM_PYTORCH},
    {"*.onnx", "checkpoint.onnx", "an ONNX graph", "get the model's safetensors files"},
    {"*.h5", "checkpoint.tensorflow", "a TensorFlow/Keras file",
     "convert it in Python with from_pretrained(FOLDER, from_tf=True).save_pretrained(NEW_FOLDER)"},
    {"*.msgpack", "checkpoint.flax", "a Flax file",
     "convert it in Python with from_pretrained(FOLDER, "
     "from_flax=True).save_pretrained(NEW_FOLDER)"},
    {"*.npz", "checkpoint.numpy", "a NumPy archive",
     "save it with safetensors' save_file in Python"},
    {"adapter_model.safetensors", "checkpoint.adapter", "a LoRA adapter without its base model",
     "merge it into the base model first (peft's merge_and_unload) and give the merged folder"},
};

/* Files of these names may lie beside the weights of any model and are none themselves. */
static const char *const innocent[] = {"training_args.bin", "optimizer.bin", "optimizer.pt",
                                       "scheduler.*",       "scaler.pt",     "rng_state*"};

static const foreign_kind *kind_of(const char *name)
{
    for (int i = 0; i < ESP_COUNT(innocent); i++) {
        if (esp_glob_match(innocent[i], name)) {
            return NULL;
        }
    }
    for (int i = 0; i < ESP_COUNT(kinds); i++) {
        if (esp_glob_match(kinds[i].glob, name)) {
            return &kinds[i];
        }
    }
    return NULL;
}

esp_status esp_foreign_refuse_file(const char *path, esp_error *error)
{
    const char *slash = strrchr(path, '/');
    const foreign_kind *kind = kind_of(slash != NULL ? slash + 1 : path);
    if (kind == NULL || esp_io_ends_with(path, ".safetensors") || !esp_path_exists(path)) {
        return ESP_OK;
    }
    return esp_fail(error, ESP_BAD_FILE, kind->code, "%s: is %s, not safetensors; %s", path,
                    kind->what, kind->remedy);
}

/* The first name of the folder that a row of the table knows; rows in order, so that the answer
 * does not depend on the order of the folder. */
static const foreign_kind *look_through(const char *path, char name[256])
{
    const foreign_kind *found = NULL;
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return NULL;
    }
    struct dirent *entry;
    while ((entry = readdir(folder)) != NULL) {
        const foreign_kind *kind = kind_of(entry->d_name);
        bool better = kind != NULL && (found == NULL || kind < found ||
                                       (kind == found && strcmp(entry->d_name, name) < 0));
        if (better) {
            found = kind;
            strcpy(name, entry->d_name);
        }
    }
    closedir(folder);
    return found;
}

esp_status esp_foreign_refuse_folder(const char *path, esp_error *error)
{
    char name[256] = "";
    const foreign_kind *kind = look_through(path, name);
    if (kind != NULL) {
        return esp_fail(error, ESP_BAD_FILE, kind->code, "%s: has no %s; %s is %s; %s", path,
                        ESP_WEIGHTS_FILE, name, kind->what, kind->remedy);
    }
    return esp_fail(
        error, ESP_BAD_FILE, "checkpoint.no_weights",
        "%s: has neither %s nor %s; a folder as Hugging Face models come in was expected", path,
        ESP_WEIGHTS_FILE, ESP_INDEX_FILE);
}
