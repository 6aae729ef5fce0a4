/* Weights of a checkpoint, by name. Every tensor's presence, shape and type is checked against
 * config.json before the first one is read, so that a hostile config cannot make the loader
 * allocate what no file backs. Then each is read, packed for the device and released, one after the
 * other. */
#include "model/family.h"

/* ---- checking ---- */

int64_t esp_want_find(const esp_checkpoint *checkpoint, const esp_want *want)
{
    int64_t index = esp_checkpoint_find(checkpoint, want->name);
    return index >= 0 || want->old_name[0] == '\0'
               ? index
               : esp_checkpoint_find(checkpoint, want->old_name);
}

static esp_status missing(const esp_checkpoint *checkpoint, const esp_want *want, const char *shape,
                          esp_error *error)
{
    bool head = strcmp(want->name, "lm_head.weight") == 0;
    return esp_fail(error, ESP_BAD_FILE, "model.missing_tensor",
                    "%s: tensor \"%s\" %s is missing%s", esp_checkpoint_path(checkpoint),
                    want->name, shape,
                    head ? ", and config.json does not say tie_word_embeddings: true"
                         : "; the checkpoint is incomplete or config.json belongs to another");
}

static esp_status check_one(const esp_checkpoint *checkpoint, const esp_want *want, bool *used,
                            esp_error *error)
{
    char expected[96], found[160];
    esp_shape_print(want->rank, want->shape, expected, sizeof expected);
    int64_t index = esp_want_find(checkpoint, want);
    if (index < 0) {
        return missing(checkpoint, want, expected, error);
    }
    used[index] = true;
    esp_weight_info info = esp_checkpoint_get(checkpoint, index);
    if (info.rank != want->rank ||
        memcmp(info.shape, want->shape, (size_t)want->rank * sizeof *want->shape) != 0) {
        esp_shape_print(info.rank, info.shape, found, sizeof found);
        return esp_fail(error, ESP_BAD_FILE, "model.wrong_shape",
                        "%s: tensor \"%s\" is %s, but config.json makes it %s",
                        esp_checkpoint_path(checkpoint), info.name, found, expected);
    }
    if (!esp_dtype_is_weight(info.dtype)) {
        return esp_fail(error, ESP_BAD_FILE, "model.wrong_dtype",
                        "%s: tensor \"%s\" is %s, expected F32, F16 or BF16",
                        esp_checkpoint_path(checkpoint), info.name, esp_dtype_name(info.dtype));
    }
    if (want->role == ESP_ROLE_TABLE && info.pattern.kind != ESP_PATTERN_DENSE) {
        return esp_fail(error, ESP_UNSUPPORTED, "model.embedding_compressed",
                        "%s: \"%s\" is compressed, but rows of it are looked up: prune without it",
                        esp_checkpoint_path(checkpoint), info.name);
    }
    return ESP_OK;
}

/* Tensors that nobody asks for are worth a word, but change nothing. */
static void mention_unused(const esp_model *model, const esp_checkpoint *checkpoint,
                           const bool *used)
{
    int64_t unused = 0;
    const char *first = NULL;
    for (int64_t i = 0; i < esp_checkpoint_count(checkpoint); i++) {
        const char *name = esp_checkpoint_get(checkpoint, i).name;
        if (!used[i] && !model->family->is_spare(name)) {
            first = first == NULL ? name : first;
            unused++;
        }
    }
    if (unused > 0) {
        esp_log(model->context, ESP_LOG_WARNING,
                "%s: %lld tensors are not used by this architecture, the first is \"%.200s\"",
                esp_checkpoint_path(checkpoint), (long long)unused, first);
    }
}

esp_status esp_weights_check(esp_model *model, const esp_checkpoint *checkpoint, esp_error *error)
{
    size_t count = (size_t)esp_checkpoint_count(checkpoint);
    int64_t parts = model->family->part_count(model);
    bool *used = esp_alloc_array(model->context, count, sizeof *used);
    if (used == NULL) {
        return esp_fail_memory(error, count, "checking tensors");
    }
    esp_status status = ESP_OK;
    for (int64_t part = 0; part < parts && status == ESP_OK; part++) {
        esp_want_list list;
        esp_weights_list(model, part, &list);
        for (int i = 0; i < list.count && status == ESP_OK; i++) {
            status = check_one(checkpoint, &list.wants[i], used, error);
        }
    }
    if (status == ESP_OK) {
        mention_unused(model, checkpoint, used);
    }
    esp_release(model->context, used);
    return status;
}

/* ---- reading ---- */

static void count_matrix(esp_model *model, const esp_want *want)
{
    esp_model_info *info = &model->info;
    const esp_packed *weight = *want->weight;
    size_t bytes = esp_packed_bytes(weight);
    unsigned forms = esp_packed_forms(weight);
    info->parameters += want->out * want->in;
    model->weights.bytes += bytes;
    if (want->inner) {
        info->linear_parameters += want->out * want->in;
        info->linear_resident_bytes += bytes;
    }
    int layers = ESP_MAX(want->stacked, 1);
    if (weight->pattern.kind != ESP_PATTERN_DENSE) {
        info->sparse_layers += layers;
        info->dense_form_layers += forms == ESP_FORM_DENSE ? layers : 0;
        info->two_form_layers += (forms & (forms - 1)) != 0 ? layers : 0; /* more than one bit */
    }
}

static esp_status view_table(const esp_model *model, const esp_want *want, esp_error *error)
{
    const esp_packed *packed = *want->weight;
    const esp_backend *backend = model->device->backend;
    if (backend->dense_rows != NULL) {
        *want->table = (esp_tensor){.dtype = packed->dtype,
                                    .rank = 2,
                                    .shape = {want->out, want->in},
                                    .data = (void *)(uintptr_t)backend->dense_rows(packed)};
        return ESP_OK;
    }
    if (packed->sparse == NULL || esp_sparse_part_count(packed->sparse) != 1) {
        return esp_fail(error, ESP_UNSUPPORTED, "model.missing_operation",
                        "device '%s' keeps dense weights in a form that has no rows to look up",
                        model->device->name);
    }
    *want->table = esp_sparse_get_part(packed->sparse, 0).tensor;
    return ESP_OK;
}

/* A convolution's kernel, whose rows are those of a matrix. */
static esp_status read_convolution(const esp_model *model, const esp_checkpoint *checkpoint,
                                   int64_t index, const esp_want *want, esp_sparse **sparse,
                                   esp_error *error)
{
    const esp_pattern dense = {.kind = ESP_PATTERN_DENSE};
    esp_tensor stored = {0};
    ESP_TRY(esp_tensor_create(model->context, esp_checkpoint_get(checkpoint, index).dtype,
                              want->rank, want->shape, &stored, error));
    esp_tensor matrix = stored;
    matrix.rank = 2;
    matrix.shape[1] = want->in;
    esp_status status = esp_checkpoint_read_dense(checkpoint, index, &stored, error);
    if (status == ESP_OK) {
        status = esp_sparse_encode(model->context, &dense, &matrix, NULL, sparse, error);
    }
    esp_tensor_free(model->context, &stored);
    return status;
}

/* The parts in host memory, and what they make. */
static esp_status read_stack(const esp_model *model, const esp_checkpoint *checkpoint,
                             int64_t index, const esp_want *want, esp_sparse **sparse,
                             esp_error *error)
{
    esp_sparse *parts[ESP_MOST_STACKED] = {NULL};
    esp_status status = ESP_OK;
    (void)model;
    for (int i = 0; i < want->stacked && status == ESP_OK; i++) {
        int64_t at = i == 0 ? index : esp_checkpoint_find(checkpoint, want->others[i - 1]);
        status = esp_checkpoint_read_sparse(checkpoint, at, &parts[i], error);
    }
    if (status == ESP_OK) {
        const esp_sparse *const read[ESP_MOST_STACKED] = {parts[0], parts[1], parts[2]};
        status = esp_sparse_stack(read, want->stacked, want->pairs, sparse, error);
    }
    for (int i = 0; i < ESP_MOST_STACKED; i++) {
        esp_sparse_free(parts[i]);
    }
    return status;
}

/* Where activations have 16 bits, weights have the same. */
static esp_status fit_type(const esp_model *model, const esp_want *want, esp_sparse *sparse,
                           esp_error *error)
{
    esp_dtype type = model->ops->type;
    if (type == ESP_F32 || esp_sparse_dtype(sparse) == type) {
        return ESP_OK;
    }
    esp_status status = esp_sparse_retype(sparse, type, error);
    return status == ESP_OK ? ESP_OK : esp_fail_within(error, status, "\"%s\"", want->name);
}

static esp_status read_matrix(const esp_model *model, const esp_checkpoint *checkpoint,
                              const esp_want *want, esp_sparse **sparse, esp_error *error)
{
    int64_t index = esp_want_find(checkpoint, want);
    return want->stacked > 1 ? read_stack(model, checkpoint, index, want, sparse, error)
           : want->rank == 2 ? esp_checkpoint_read_sparse(checkpoint, index, sparse, error)
                             : read_convolution(model, checkpoint, index, want, sparse, error);
}

static esp_status pack_matrix(esp_model *model, const esp_want *want, const esp_sparse *sparse,
                              esp_error *error)
{
    esp_pack_options options = {0};
    if (want->role == ESP_ROLE_LINEAR) {
        ESP_TRY(esp_model_forms(model, want->linear, sparse, &options.forms, error));
    }
    ESP_TRY(esp_pack_with(model->device, sparse, &options, want->weight, error));
    count_matrix(model, want);
    return want->role == ESP_ROLE_TABLE ? view_table(model, want, error) : ESP_OK;
}

static esp_status finish_matrices(esp_model *model, esp_readers *readers, esp_error *error)
{
    for (int i = 0; i < readers->count; i++) {
        ESP_TRY(fit_type(model, readers->wants[i], readers->sparse[i], error));
    }
    for (int i = 0; i < readers->count; i++) {
        ESP_TRY(pack_matrix(model, readers->wants[i], readers->sparse[i], error));
        esp_sparse_free(readers->sparse[i]);
        readers->sparse[i] = NULL;
    }
    return ESP_OK;
}

static void free_matrices(esp_readers *readers)
{
    for (int i = 0; i < readers->count; i++) {
        esp_sparse_free(readers->sparse[i]);
        readers->sparse[i] = NULL;
    }
}

static esp_status read_matrices(const esp_model *model, const esp_checkpoint *checkpoint,
                                esp_readers *readers, esp_error *error)
{
    for (int i = 0; i < readers->count; i++) {
        ESP_TRY(read_matrix(model, checkpoint, readers->wants[i], &readers->sparse[i], error));
    }
    return ESP_OK;
}

static bool is_to_be_held(const esp_model *model, const esp_want *want)
{
    return want->reads.weight != NULL && esp_model_holds_norms(model, want->reads.bias != NULL);
}

/* Layers that take in one norm are in host memory together, since all of them do or none. */
static esp_status load_matrices(esp_model *model, const esp_checkpoint *checkpoint,
                                esp_readers *readers, esp_error *error)
{
    bool held = readers->count == 0 || !is_to_be_held(model, readers->wants[0]);
    esp_status status = read_matrices(model, checkpoint, readers, error);
    if (status == ESP_OK && !held) {
        status = esp_norm_hold(model, readers, &held, error);
        if (status == ESP_OK && !held) {
            free_matrices(readers);
            status = read_matrices(model, checkpoint, readers, error);
        }
    }
    if (status == ESP_OK) {
        status = finish_matrices(model, readers, error);
    }
    free_matrices(readers);
    return status;
}

esp_status esp_vector_take(esp_taken *taken, const float *numbers, int64_t count, const char *what,
                           float **vector, esp_error *error)
{
    void *memory = NULL;
    ESP_TRY(esp_device_take(taken, (size_t)count, sizeof(float), what, &memory, error));
    *vector = memory;
    return esp_device_upload(taken->device, memory, numbers, (size_t)count * sizeof(float), error);
}

esp_status esp_vector_read(const esp_model *model, const float *vector, int64_t count,
                           float *numbers, esp_error *error)
{
    return esp_device_download(model->device, numbers, vector, (size_t)count * sizeof(float),
                               error);
}

/* One tensor's numbers, as many as it has. */
static esp_status read_numbers(const esp_model *model, const esp_checkpoint *checkpoint,
                               int64_t index, float *numbers, esp_error *error)
{
    esp_weight_info info = esp_checkpoint_get(checkpoint, index);
    esp_tensor stored = {0};
    int64_t count = 1;
    for (int i = 0; i < info.rank; i++) {
        count *= info.shape[i];
    }
    ESP_TRY(esp_tensor_create(model->context, info.dtype, info.rank, info.shape, &stored, error));
    esp_status status = esp_checkpoint_read_dense(checkpoint, index, &stored, error);
    if (status == ESP_OK) {
        esp_widen(stored.dtype, stored.data, count, numbers);
    }
    esp_tensor_free(model->context, &stored);
    return status;
}

/* The numbers of several in turn; of one they stay where they are. */
static void take_turns(const esp_want *want, const float *from, float *to)
{
    for (int64_t i = 0; i < want->out; i++) {
        to[i] = want->pairs ? from[i % 2 * want->rows[0] + i / 2] : from[i];
    }
}

static esp_status read_all_numbers(const esp_model *model, const esp_checkpoint *checkpoint,
                                   int64_t index, const esp_want *want, float *numbers,
                                   esp_error *error)
{
    ESP_TRY(read_numbers(model, checkpoint, index, numbers, error));
    int64_t at = want->rows[0];
    for (int i = 1; i < want->stacked; i++) {
        int64_t other = esp_checkpoint_find(checkpoint, want->others[i - 1]);
        ESP_TRY(read_numbers(model, checkpoint, other, numbers + at, error));
        at += want->rows[i];
    }
    return ESP_OK;
}

/* Norm weights and biases are kept in f32: they are small, and read as such by every operation. */
static esp_status read_vector(esp_model *model, const esp_checkpoint *checkpoint, int64_t index,
                              const esp_want *want, esp_error *error)
{
    size_t count = (size_t)want->out;
    float *numbers = esp_alloc_array(model->context, 2 * count, sizeof *numbers);
    if (numbers == NULL) {
        return esp_fail_memory(error, 2 * count * sizeof *numbers, want->name);
    }
    float *ordered = numbers + count;
    esp_status status = read_all_numbers(model, checkpoint, index, want, numbers, error);
    if (status == ESP_OK) {
        take_turns(want, numbers, ordered);
        status =
            esp_vector_take(&model->weights, ordered, want->out, want->name, want->vector, error);
    }
    esp_release(model->context, numbers);
    model->info.parameters += want->out;
    return status;
}

/* A matrix, with those that take in the same norm; none where it came with one before. */
static esp_readers readers_from(const esp_model *model, const esp_want_list *list, int first)
{
    const esp_want *want = &list->wants[first];
    esp_readers readers = {.count = 0};
    if (!is_to_be_held(model, want)) {
        return (esp_readers){.wants = {want}, .count = 1};
    }
    for (int i = 0; i < list->count && readers.count < ESP_MOST_READERS; i++) {
        if (list->wants[i].reads.weight == want->reads.weight) {
            readers.wants[readers.count++] = &list->wants[i];
        }
    }
    readers.count = readers.wants[0] == want ? readers.count : 0;
    return readers;
}

esp_status esp_weights_load_part(esp_model *model, const esp_checkpoint *checkpoint, int64_t part,
                                 esp_error *error)
{
    esp_want_list list;
    esp_weights_list(model, part, &list);
    for (int i = 0; i < list.count; i++) {
        const esp_want *want = &list.wants[i];
        if (want->role == ESP_ROLE_VECTOR) {
            int64_t index = esp_want_find(checkpoint, want);
            ESP_TRY(read_vector(model, checkpoint, index, want, error));
        }
    }
    for (int i = 0; i < list.count; i++) { /* a bias belongs to the product */
        if (list.wants[i].role != ESP_ROLE_VECTOR) {
            esp_readers readers = readers_from(model, &list, i);
            ESP_TRY(load_matrices(model, checkpoint, &readers, error));
        }
    }
    return ESP_OK;
}

static esp_status read_all(esp_model *model, const esp_checkpoint *checkpoint,
                           const esp_model_options *options, esp_error *error)
{
    int64_t parts = model->family->part_count(model);
    for (int64_t part = 0; part < parts; part++) {
        ESP_TRY(esp_weights_load_part(model, checkpoint, part, error));
        if (options->progress != NULL &&
            !options->progress(options->user, "load", (double)(part + 1), (double)parts,
                               "layers")) {
            return esp_fail(error, ESP_CANCELLED, "cancelled", "loading was cancelled");
        }
    }
    return ESP_OK;
}

/* The type of the first inner layer. */
static esp_dtype weight_type(esp_model *model, const esp_checkpoint *checkpoint)
{
    int64_t parts = model->family->part_count(model);
    for (int64_t part = 0; part < parts; part++) {
        esp_want_list list;
        esp_weights_list(model, part, &list);
        for (int i = 0; i < list.count; i++) {
            if (list.wants[i].inner) {
                return esp_checkpoint_get(checkpoint, esp_want_find(checkpoint, &list.wants[i]))
                    .dtype;
            }
        }
    }
    return ESP_F32;
}

/* Before any weight is read, since the choice of forms depends on it. */
static void choose_types(esp_model *model, const esp_checkpoint *checkpoint)
{
    esp_device *device = model->device;
    const esp_backend *backend = device->backend;
    esp_dtype type = weight_type(model, checkpoint);
    model->ops = esp_nn_ops(device, backend->activation_type != NULL
                                        ? backend->activation_type(device, model->compute, type)
                                        : ESP_F32);
    if (model->ops->type != ESP_F32) { /* products of such are summed in f32 */
        model->compute = ESP_COMPUTE_F32;
        if (model->ops->type != type) {
            esp_log(model->context, ESP_LOG_WARNING,
                    "%s: weights of %s are rounded to %s, in which "
                    "device '%s' runs models",
                    esp_checkpoint_path(checkpoint), esp_dtype_name(type),
                    esp_dtype_name(model->ops->type), device->name);
        }
    }
    if (model->compute == ESP_COMPUTE_AUTO) {
        model->compute = backend->auto_compute(device, type);
    }
}

esp_status esp_weights_prepare(esp_model *model, const esp_checkpoint *checkpoint, esp_error *error)
{
    ESP_TRY(esp_weights_check(model, checkpoint, error));
    choose_types(model, checkpoint);
    if (model->family->stack != NULL) {
        model->family->stack(model, checkpoint);
    }
    esp_linear *linear;
    for (int64_t i = 0; (linear = model->family->linear_at(model, i)) != NULL; i++) {
        linear->number = i;
    }
    return ESP_OK;
}

esp_status esp_weights_load(esp_model *model, const esp_checkpoint *checkpoint,
                            const esp_model_options *options, esp_error *error)
{
    ESP_TRY(esp_weights_prepare(model, checkpoint, error));
    return read_all(model, checkpoint, options, error);
}

void esp_weights_drop_part(esp_model *model, int64_t part)
{
    esp_want_list list;
    esp_weights_list(model, part, &list);
    for (int i = 0; i < list.count; i++) {
        const esp_want *want = &list.wants[i];
        if (want->role == ESP_ROLE_VECTOR) {
            esp_vector_free(model, *want->vector);
            *want->vector = NULL;
        } else {
            esp_packed_free(*want->weight);
            *want->weight = NULL;
        }
    }
}

void esp_vector_free(const esp_model *model, float *vector)
{
    if (vector != NULL) {
        model->device->backend->release(model->device, vector);
    }
}
