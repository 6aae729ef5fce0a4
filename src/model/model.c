/* Loading a model folder: config -> checks -> weights -> a kernel for every layer; and questions.
 */
#include "model/family.h"

int64_t esp_model_columns(const esp_model *model, int64_t tokens)
{
    int64_t each = model->info.context;
    if (model->family->images != NULL && tokens > 0 && tokens % each == 0) {
        tokens = tokens / each * esp_ops_pitch(model->ops, each);
    }
    return esp_ops_columns(model->ops, tokens);
}

/* Every layer must have a kernel before anything is asked of the model. */
static esp_status check_kernels(const esp_model *model, esp_error *error)
{
    const esp_linear *linear;
    for (int64_t i = 0; (linear = esp_model_linear(model, i)) != NULL; i++) {
        esp_matmul_problem problem = esp_linear_problem(linear, model->compute, model->ops->type,
                                                        esp_model_columns(model, model->tokens));
        esp_plan plan;
        ESP_TRY(
            esp_linear_plan(model->device, linear, &problem, &model->plan_options, &plan, error));
    }
    return ESP_OK;
}

static esp_status keep_options(esp_model *model, const esp_model_options *options, esp_error *error)
{
    if ((unsigned)options->memory > ESP_MEMORY_TWO || options->tokens < 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "model.bad_options",
                        "model: memory %d or tokens %lld is out of range", (int)options->memory,
                        (long long)options->tokens);
    }
    if (options->kernel_glob != NULL) {
        model->kernel_glob = esp_strdup(model->context, options->kernel_glob);
        if (model->kernel_glob == NULL) {
            return esp_fail_memory(error, strlen(options->kernel_glob), "a kernel name");
        }
    }
    model->compute = options->compute;
    model->memory = options->require_sparse ? ESP_MEMORY_SPARSE : options->memory;
    int64_t usual = model->family->images != NULL ? model->info.context : 1; /* an image; a token */
    model->tokens = options->tokens > 0 ? options->tokens : usual;
    model->plan_options = (esp_plan_options){.kernel_glob = model->kernel_glob,
                                             .require_sparse = options->require_sparse,
                                             .ignore_tuning = options->ignore_tuning};
    return ESP_OK;
}

/* The family's memory, and what it reads of config.json. */
static esp_status configure(esp_model *model, const esp_config_file *config, const char *folder,
                            esp_error *error)
{
    const char *architecture = NULL;
    const esp_family *family = NULL;
    ESP_TRY(esp_family_find(config, &family, &architecture, error));
    ESP_TRY(esp_nn_check_ops(model->device, family->kind == ESP_MODEL_DECODER, error));
    model->parts = esp_alloc_zero(model->context, family->parts_bytes);
    if (model->parts == NULL) {
        return esp_fail_memory(error, family->parts_bytes, "a model");
    }
    model->family = family;
    model->info.kind = family->kind;
    model->info.bos = -1;
    snprintf(model->info.architecture, sizeof model->info.architecture, "%s", architecture);
    return family->configure(model, config, folder, error);
}

static esp_status read_config(esp_model *model, const esp_checkpoint *checkpoint, esp_error *error)
{
    const char *text = esp_checkpoint_config(checkpoint), *folder = esp_checkpoint_path(checkpoint);
    if (text == NULL) {
        return esp_fail(
            error, ESP_BAD_FILE, "config.missing",
            "%s: a lone weight file has no config.json that says what model it is; give "
            "the model's folder",
            folder);
    }
    json_t *json = NULL;
    esp_buffer name;
    esp_buffer_init(&name, model->context);
    esp_buffer_printf(&name, "%s/config.json", folder);
    esp_status status = name.failed ? esp_fail_memory(error, strlen(folder), "a path")
                                    : esp_config_parse(text, name.data, &json, error);
    if (status == ESP_OK) {
        esp_config_file config = {name.data, json};
        status = configure(model, &config, folder, error);
        json_decref(json);
    }
    esp_buffer_free(&name);
    return status;
}

static esp_status outline(esp_model *model, const esp_checkpoint *checkpoint,
                          const esp_model_options *options, esp_error *error)
{
    ESP_TRY(read_config(model, checkpoint, error));
    ESP_TRY(keep_options(model, options, error));
    ESP_TRY(model->family->prepare(model, checkpoint, error));
    esp_linear *linear;
    for (int64_t i = 0; (linear = model->family->linear_at(model, i)) != NULL; i++) {
        linear->number = i;
    }
    return ESP_OK;
}

static esp_status load(esp_model *model, const esp_checkpoint *checkpoint,
                       const esp_model_options *options, esp_error *error)
{
    ESP_TRY(outline(model, checkpoint, options, error));
    ESP_TRY(esp_weights_load(model, checkpoint, options, error));
    if (model->family->finish != NULL) {
        model->family->finish(model);
    }
    model->info.compute = model->compute;
    model->info.activations = model->ops->type;
    return check_kernels(model, error);
}

typedef esp_status (*make_fn)(esp_model *model, const esp_checkpoint *checkpoint,
                              const esp_model_options *options, esp_error *error);

esp_model *esp_model_blank(esp_device *device)
{
    esp_model *made = esp_alloc_zero(device->context, sizeof *made);
    if (made != NULL) {
        made->context = device->context;
        made->device = device;
        made->weights.device = device;
    }
    return made;
}

static esp_status create(esp_device *device, const esp_checkpoint *checkpoint, make_fn make,
                         const esp_model_options *options, esp_model **model, esp_error *error)
{
    const esp_model_options defaults = {0};
    esp_model *made = esp_model_blank(device);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a model");
    }
    esp_status status = make(made, checkpoint, options != NULL ? options : &defaults, error);
    if (status != ESP_OK) {
        esp_model_free(made);
        return status;
    }
    *model = made;
    return ESP_OK;
}

esp_status esp_model_load(esp_device *device, const esp_checkpoint *checkpoint,
                          const esp_model_options *options, esp_model **model, esp_error *error)
{
    return create(device, checkpoint, load, options, model, error);
}

esp_status esp_model_prepare(esp_device *device, const esp_checkpoint *checkpoint,
                             const esp_model_options *options, esp_model **model, esp_error *error)
{
    return create(device, checkpoint, outline, options, model, error);
}

esp_status esp_model_outline(esp_device *device, const esp_checkpoint *checkpoint,
                             esp_model **model, esp_error *error)
{
    esp_model *made = esp_model_blank(device);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a model");
    }
    esp_status status = read_config(made, checkpoint, error);
    if (status == ESP_OK) {
        status = made->family->prepare(made, checkpoint, error);
    }
    if (status == ESP_OK) {
        status = esp_weights_check(made, checkpoint, error);
    }
    if (status != ESP_OK) {
        esp_model_free(made);
        return status;
    }
    *model = made;
    return ESP_OK;
}

esp_context *esp_model_context(const esp_model *model)
{
    return model->context;
}

void esp_model_free(esp_model *model)
{
    if (model == NULL) {
        return;
    }
    esp_context *context = model->context;
    if (model->family != NULL) {
        model->family->release(model);
    }
    esp_release(context, model->parts);
    esp_release(context, model->kernel_glob);
    esp_release(context, model);
}

void esp_model_get_info(const esp_model *model, esp_model_info *info)
{
    *info = model->info;
    info->resident_bytes = model->weights.bytes;
}

void esp_model_get_memory(const esp_model *model, esp_model_memory *memory)
{
    memory->weights = model->weights.bytes;
    memory->activations = atomic_load(&model->use.most);
}

/* ---- which kernels run ---- */

const esp_linear *esp_model_linear(const esp_model *model, int64_t number)
{
    return model->family->linear_at((esp_model *)(uintptr_t)model, number);
}

int64_t esp_model_linears(const esp_model *model)
{
    int64_t count = 0;
    while (esp_model_linear(model, count) != NULL) {
        count++;
    }
    return count;
}

static int64_t columns_in(const esp_model *model, const esp_linear *linear, esp_model_call call,
                          bool *few)
{
    int64_t own = 0;
    *few = false;
    if (model->family->columns_at != NULL) {
        own = model->family->columns_at(model, linear, call, few);
    }
    return own > 0 ? own : esp_model_columns(model, call.tokens);
}

#define MAX_KERNELS 64

typedef struct kernel_use {
    const char *name;
    int count;
} kernel_use;

static int count_kernel(kernel_use *uses, int used, const char *name)
{
    for (int i = 0; i < used; i++) {
        if (strcmp(uses[i].name, name) == 0) {
            uses[i].count++;
            return used;
        }
    }
    if (used < MAX_KERNELS) {
        uses[used++] = (kernel_use){name, 1};
    }
    return used;
}

/* Most used first; a stable insertion sort keeps the order of the layers among equals. */
static void sort_uses(kernel_use *uses, int used)
{
    for (int i = 1; i < used; i++) {
        kernel_use moving = uses[i];
        int at = i;
        for (; at > 0 && uses[at - 1].count < moving.count; at--) {
            uses[at] = uses[at - 1];
        }
        uses[at] = moving;
    }
}

int esp_model_kernels(const esp_model *model, esp_model_call call, const char **names, int *counts,
                      int capacity)
{
    kernel_use uses[MAX_KERNELS];
    const esp_linear *linear;
    int used = 0;
    for (int64_t i = 0; (linear = esp_model_linear(model, i)) != NULL; i++) {
        esp_plan_options options = model->plan_options;
        esp_plan plan;
        unsigned later;
        bool few;
        int64_t columns = columns_in(model, linear, call, &few);
        options.require_sparse = options.require_sparse && !few;
        if (esp_linear_choose(model->device, linear, model->ops, model->compute, columns, &options,
                              &plan, &later, NULL) == ESP_OK) {
            used = count_kernel(uses, used, plan.kernel->name);
        }
    }
    sort_uses(uses, used);
    for (int i = 0; i < used && i < capacity; i++) {
        names[i] = uses[i].name;
        counts[i] = uses[i].count;
    }
    return used;
}

bool esp_model_get_layer(const esp_model *model, int64_t index, esp_model_call call,
                         esp_model_layer *layer)
{
    const esp_linear *linear = index >= 0 ? esp_model_linear(model, index) : NULL;
    if (linear == NULL) {
        return false;
    }
    bool few;
    int64_t columns = columns_in(model, linear, call, &few);
    *layer = (esp_model_layer){
        .name = linear->name,
        .problem = esp_linear_problem(linear, model->compute, model->ops->type, columns),
        .forms = esp_packed_forms(linear->weight),
        .resident_bytes = esp_packed_bytes(linear->weight),
        .few = few};
    return true;
}
