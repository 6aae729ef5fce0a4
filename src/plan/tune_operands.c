/* What a measurement works on: one weight, pruned by magnitude into the pattern, compressed and as
 * a dense tensor, and activations of which few vectors differ. Integers are so small that every sum
 * is exact in f32 in any order; then results must be equal. Reals are what is timed. */
#include "plan/tune.h"
#include "prune/prune.h"

#define PIECE 1024
#define REFERENCE_WORK ((int64_t)1 << 27) /* multiply-adds of the reference, at 2 ns */
#define RECORDED_WORK ((int64_t)1 << 25)  /* on a GPU, where everything else takes less */
#define MOST_VECTORS 16
#define EXACT_IN ((int64_t)1 << 19) /* times 16, times a scale of 2: still exact in f32 */

int64_t tune_rows(const esp_matmul_problem *problem)
{
    return problem->out_features >> ((problem->epilogue & ESP_EP_SWIGLU) != 0);
}

/* ---- memory ---- */

static size_t bytes_of(int64_t rows, int64_t columns, esp_dtype dtype)
{
    return (size_t)rows * (size_t)columns * esp_dtype_bytes(dtype); /* checked to fit */
}

/* Host memory, or of the device. */
static esp_status take(tune_job *job, bool of_device, size_t bytes, void *memory, esp_error *error)
{
    void *taken = of_device ? esp_device_alloc(job->device, bytes) : esp_alloc(job->context, bytes);
    memcpy(memory, &taken, sizeof taken);
    return taken != NULL ? ESP_OK : esp_fail_memory(error, bytes, "a measurement");
}

static esp_status take_memory(tune_job *job, bool of_device, tune_memory *memory, esp_error *error)
{
    const esp_matmul_problem *problem = &job->problem;
    int64_t out = problem->out_features, in = problem->in_features, vectors = job->vectors;
    size_t y_bytes = bytes_of(out, vectors, problem->out_type);
    size_t x_bytes = bytes_of(in, vectors, problem->act_type);
    size_t bound_bytes = (size_t)(out * vectors) * sizeof *memory->bounds;
    size_t map_bytes = (size_t)problem->tokens * sizeof *memory->map;
    ESP_TRY(take(job, of_device, x_bytes, &memory->few_x, error));
    ESP_TRY(take(job, of_device, y_bytes, &memory->few_y, error));
    ESP_TRY(take(job, of_device, y_bytes, &memory->few_residual, error));
    ESP_TRY(take(job, of_device, bytes_of(out, 1, ESP_F32), &memory->scale, error));
    ESP_TRY(take(job, of_device, bytes_of(out, 1, ESP_F32), &memory->bias, error));
    ESP_TRY(take(job, of_device, bound_bytes, &memory->bounds, error));
    return take(job, of_device, map_bytes, &memory->map, error);
}

static esp_status take_all(tune_job *job, esp_error *error)
{
    const esp_matmul_problem *problem = &job->problem;
    int64_t out = problem->out_features, in = problem->in_features, tokens = problem->tokens;
    const int64_t shape[] = {out, in};
    size_t y_bytes = bytes_of(out, tokens, problem->out_type);
    ESP_TRY(esp_tensor_create(job->context, problem->weight_type, 2, shape, &job->dense, error));
    ESP_TRY(take(job, true, bytes_of(in, tokens, problem->act_type), &job->x, error));
    ESP_TRY(take(job, true, y_bytes, &job->y, error));
    ESP_TRY(take(job, true, y_bytes, &job->residual, error));
    ESP_TRY(take_memory(job, false, &job->host, error));
    return take_memory(job, true, &job->mirror, error);
}

esp_status tune_workspace(tune_job *job, size_t bytes, esp_error *error)
{
    if (job->workspace != NULL && bytes <= job->workspace_bytes) {
        return ESP_OK;
    }
    esp_device_release(job->device, job->workspace);
    job->workspace_bytes = bytes;
    job->workspace = NULL;
    return take(job, true, bytes, &job->workspace, error);
}

void tune_operands_free(tune_job *job)
{
    const tune_memory *host = &job->host, *mirror = &job->mirror;
    void *const here[] = {host->few_x, host->few_y,  host->few_residual, host->scale,
                          host->bias,  host->bounds, host->map};
    void *const there[] = {job->x,         job->y,        job->residual,        mirror->few_x,
                           mirror->few_y,  mirror->scale, mirror->few_residual, mirror->bias,
                           mirror->bounds, mirror->map,   job->workspace};
    for (int i = 0; i < ESP_COUNT(here); i++) {
        esp_release(job->context, here[i]);
    }
    for (int i = 0; i < ESP_COUNT(there); i++) {
        esp_device_release(job->device, there[i]);
    }
    esp_packed_free(job->weight);
    esp_tensor_free(job->context, &job->dense);
    esp_sparse_free(job->sparse);
    esp_mask_free(job->mask);
}

/* ---- numbers ---- */

static float number(esp_random *random, tune_numbers numbers, float most)
{
    if (numbers == TUNE_REALS) {
        return most * (float)(2 * esp_random_uniform(random) - 1);
    }
    float value = 1 + (float)esp_random_below(random, (uint64_t)most);
    return esp_random_below(random, 2) == 0 ? value : -value;
}

typedef struct filling {
    esp_dtype dtype;
    char *data;
    int64_t count;
    uint64_t seed;
    tune_numbers numbers;
    float most;
} filling;

/* Each piece has a generator of its own, so that threads may share the work. */
static void fill_pieces(void *user, int64_t begin, int64_t end, int thread)
{
    const filling *all = user;
    float piece[PIECE];
    (void)thread;
    for (int64_t p = begin; p < end; p++) {
        int64_t first = p * PIECE, length = ESP_MIN(PIECE, all->count - first);
        uint64_t mixed = all->seed + (uint64_t)p;
        esp_random random;
        esp_random_seed(&random, esp_splitmix64(&mixed));
        for (int64_t i = 0; i < length; i++) {
            piece[i] = number(&random, all->numbers, all->most);
        }
        esp_narrow(all->dtype, piece, length,
                   all->data + (size_t)first * esp_dtype_bytes(all->dtype));
    }
}

/* Which of the operands it is goes into the seed's high bits, which pieces do not reach. */
static void fill(tune_job *job, int which, esp_dtype dtype, void *data, int64_t count,
                 tune_numbers numbers, float most)
{
    filling all = {.dtype = dtype,
                   .data = data,
                   .count = count,
                   .seed = job->options.seed + ((uint64_t)which << 48),
                   .numbers = numbers,
                   .most = most};
    esp_parallel_for(job->context, (count + PIECE - 1) / PIECE, 64, fill_pieces, &all);
}

static esp_status spread(tune_job *job, const esp_spread *what, esp_error *error)
{
    if (job->device->backend->spread != NULL) {
        return job->device->backend->spread(job->device, what, error);
    }
    esp_spread_host(what);
    return ESP_OK;
}

/* Mixed: with no period that a tile of tokens could hide in. */
static void fill_map(tune_job *job, int64_t tokens)
{
    for (int64_t t = 0; t < tokens; t++) {
        uint64_t mixed = (uint64_t)t;
        job->host.map[t] =
            (int32_t)(tokens <= job->vectors
                          ? t
                          : (int64_t)(esp_splitmix64(&mixed) % (uint64_t)job->vectors));
    }
}

esp_status tune_operands_spread(tune_job *job, const esp_matmul_problem *problem, esp_error *error)
{
    const tune_memory *mirror = &job->mirror;
    esp_spread x = {.layout = problem->x_layout,
                    .features = problem->in_features,
                    .tokens = problem->tokens,
                    .vectors = job->vectors,
                    .width = esp_dtype_bytes(problem->act_type),
                    .map = mirror->map,
                    .few = mirror->few_x,
                    .all = job->x};
    esp_spread residual = x;
    residual.layout = problem->y_layout;
    residual.features = tune_rows(problem);
    residual.width = esp_dtype_bytes(problem->out_type);
    residual.few = mirror->few_residual;
    residual.all = job->residual;
    fill_map(job, problem->tokens);
    ESP_TRY(esp_device_upload(job->device, mirror->map, job->host.map,
                              (size_t)problem->tokens * sizeof *mirror->map, error));
    ESP_TRY(spread(job, &x, error));
    return spread(job, &residual, error);
}

static void fill_weight(tune_job *job, tune_numbers numbers, float most)
{
    const esp_matmul_problem *problem = &job->problem;
    fill(job, numbers == TUNE_REALS, problem->weight_type, job->dense.data,
         problem->out_features * problem->in_features, numbers, most);
}

esp_status tune_operands_make(tune_job *job, esp_error *error)
{
    const esp_matmul_problem *problem = &job->problem;
    if (problem->in_features > EXACT_IN) {
        return esp_fail(error, ESP_UNSUPPORTED, "tune.too_wide",
                        "tune: %lld input features are more than the %lld whose sums of small "
                        "integers are exact",
                        (long long)problem->in_features, (long long)EXACT_IN);
    }
    int64_t work = job->device->backend->record != NULL ? RECORDED_WORK : REFERENCE_WORK;
    int64_t most = work / (problem->out_features * problem->in_features);
    job->vectors = ESP_MIN(problem->tokens, ESP_MAX(2, ESP_MIN(most, MOST_VECTORS)));
    ESP_TRY(take_all(job, error));
    if (problem->pattern.kind == ESP_PATTERN_DENSE) {
        return ESP_OK;
    }
    fill_weight(job, TUNE_REALS, 1);
    return esp_prune_mask(job->context, &job->dense, &problem->pattern, NULL, &job->mask, NULL,
                          error);
}

static esp_status upload(tune_job *job, esp_error *error)
{
    const esp_matmul_problem *problem = &job->problem;
    const tune_memory *host = &job->host, *mirror = &job->mirror;
    int64_t out = problem->out_features, in = problem->in_features;
    const struct {
        void *to;
        const void *from;
        size_t bytes;
    } copies[] = {
        {mirror->few_x, host->few_x, bytes_of(in, job->vectors, problem->act_type)},
        {mirror->few_residual, host->few_residual, bytes_of(out, job->vectors, problem->out_type)},
        {mirror->scale, host->scale, bytes_of(out, 1, ESP_F32)},
        {mirror->bias, host->bias, bytes_of(out, 1, ESP_F32)}};
    for (int i = 0; i < ESP_COUNT(copies); i++) {
        ESP_TRY(
            esp_device_upload(job->device, copies[i].to, copies[i].from, copies[i].bytes, error));
    }
    return ESP_OK;
}

static esp_status encode(tune_job *job, esp_error *error)
{
    const esp_pack_options forms = {PLAN_ALL_FORMS};
    esp_packed_free(job->weight);
    job->weight = NULL;
    esp_sparse_free(job->sparse);
    job->sparse = NULL;
    if (job->mask != NULL) {
        ESP_TRY(esp_mask_apply(job->mask, &job->dense, error));
    }
    ESP_TRY(esp_sparse_encode(job->context, &job->problem.pattern, &job->dense, job->mask,
                              &job->sparse, error));
    return esp_pack_with(job->device, job->sparse, &forms, &job->weight, error);
}

esp_status tune_operands_fill(tune_job *job, tune_numbers numbers, esp_error *error)
{
    const esp_matmul_problem *problem = &job->problem;
    const tune_memory *host = &job->host;
    int64_t out = problem->out_features, in = problem->in_features;
    float most = numbers == TUNE_REALS ? 1 : 4;
    fill(job, 2, problem->act_type, host->few_x, in * job->vectors, numbers, most);
    fill(job, 3, problem->out_type, host->few_residual, out * job->vectors, numbers, most);
    fill(job, 4, ESP_F32, host->scale, out, numbers, 2);
    fill(job, 5, ESP_F32, host->bias, out, numbers, most);
    ESP_TRY(upload(job, error));
    fill_weight(job, numbers, most);
    return encode(job, error);
}
