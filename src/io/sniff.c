/* Naming what a file is that is no safetensors file. Asked only when the length in the first 8
 * bytes makes no sense, because any magic number is also some valid length. */
#include <ctype.h>
#include <string.h>

#include "io/safetensors.h"

typedef struct magic {
    const char *bytes;
    size_t length;
    const char *code, *message;
} magic;

#define MAGIC(bytes, code, message)                                                                \
    {                                                                                              \
        bytes, sizeof(bytes) - 1, code, message                                                    \
    }

static const magic magics[] = {
    MAGIC("version https://git-lfs", "safetensors.is_git_lfs_pointer",
          "is a git-lfs pointer, not the model: run `git lfs pull` in the folder it came from, or "
          "download the file itself"),
    MAGIC("\x1f\x8b", "safetensors.is_gzip", "is a gzip archive: unpack it first"),
    MAGIC("PK\x03\x04", "safetensors.is_zip",
          "is a zip archive (PyTorch .bin and .pt files are): convert it with safetensors' "
          "save_file in Python, or unpack it"),
    MAGIC("PK\x05\x06", "safetensors.is_zip", "is an empty zip archive: download the file again"),
    MAGIC("GGUF", "safetensors.is_gguf",
          "is a GGUF file: get the model's original safetensors files"),
    MAGIC("\x89HDF\r\n", "safetensors.is_hdf5",
          "is an HDF5 file (Keras, TensorFlow): get the model's safetensors files"),
};

static bool is_html(const unsigned char *head, size_t bytes)
{
    static const char *const starts[] = {"<!doctype", "<html", "<?xml", "<head"};
    size_t at = bytes >= 3 && memcmp(head, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    while (at < bytes && isspace(head[at])) {
        at++;
    }
    for (int i = 0; i < ESP_COUNT(starts); i++) {
        size_t length = strlen(starts[i]), same = 0;
        while (same < length && at + same < bytes && tolower(head[at + same]) == starts[i][same]) {
            same++;
        }
        if (same == length) {
            return true;
        }
    }
    return false;
}

esp_status esp_safetensors_sniff(const char *path, const unsigned char *head, size_t bytes,
                                 esp_error *error)
{
    for (int i = 0; i < ESP_COUNT(magics); i++) {
        if (bytes >= magics[i].length && memcmp(head, magics[i].bytes, magics[i].length) == 0) {
            return esp_fail(error, ESP_BAD_FILE, magics[i].code, "%s: %s", path, magics[i].message);
        }
    }
    if (bytes >= 2 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5) {
        return esp_fail(error, ESP_BAD_FILE, "safetensors.is_pickle",
                        "%s: is a Python pickle, which can run code when loaded and is never read "
                        "here: convert it with safetensors' save_file in Python",
                        path);
    }
    if (is_html(head, bytes)) {
        return esp_fail(error, ESP_BAD_FILE, "safetensors.is_html",
                        "%s: is a web page, most likely an error or login page that was saved in "
                        "place of the model: download the file again",
                        path);
    }
    if (bytes >= 2 && (head[0] == '{' || head[0] == '[') && (isspace(head[1]) || head[1] == '"')) {
        return esp_fail(error, ESP_BAD_FILE, "safetensors.is_json",
                        "%s: is JSON text, an index or a server's message, not a safetensors file: "
                        "give the model's folder, or download the file again",
                        path);
    }
    return ESP_OK;
}
