/* What a measurement works on: one weight, pruned by magnitude into the pattern, compressed and as
 * a dense tensor, and activations of which few vectors differ. Integers are so small that every sum
 * is exact in f32 in any order; then results must be equal. Reals are what is timed. */
#include "plan/tune.h"
#include "prune/prune.h"

#define PIECE 1024
#define REFERENCE_WORK ((int64_t)1 << 27) /* multiply-adds of the reference, at 2 ns */
#define MOST_VECTORS 16
#define EXACT_IN ((int64_t)1 << 19) /* times 16, times a scale of 2: still exact in f32 */

int64_t tune_vector(const tune_job *job, int64_t token)
{
    if (job->problem.tokens == job->vectors) {
        return token;
    }
    uint64_t mixed = (uint64_t)token; /* no period that a tile of tokens could hide in */
    return (int64_t)(esp_splitmix64(&mixed) % (uint64_t)job->vectors);
}

int64_t tune_rows(const esp_matmul_problem *problem)
{
    return problem->out_features >> ((problem->epilogue & ESP_EP_SWIGLU) != 0);
}

/* ---- memory ---- */

static esp_status take(tune_job *job, int64_t rows, int64_t columns, esp_dtype dtype, void *memory,
                       esp_error *error)
{
    size_t bytes = (size_t)rows * (size_t)columns * esp_dtype_bytes(dtype); /* checked to fit */
    void *taken = esp_alloc(job->context, bytes);
    memcpy(memory, &taken, sizeof taken);
    return taken != NULL ? ESP_OK : esp_fail_memory(error, bytes, "a measurement");
}

static esp_status take_all(tune_job *job, esp_error *error)
{
    const esp_matmul_problem *problem = &job->problem;
    int64_t out = problem->out_features, in = problem->in_features, tokens = problem->tokens;
    const int64_t shape[] = {out, in};
    job->y_bytes = (size_t)(out * tokens) * esp_dtype_bytes(problem->out_type);
    ESP_TRY(esp_tensor_create(job->context, problem->weight_type, 2, shape, &job->dense, error));
    ESP_TRY(take(job, in, tokens, problem->act_type, &job->x, error));
    ESP_TRY(take(job, out, tokens, problem->out_type, &job->y, error));
    ESP_TRY(take(job, out, tokens, problem->out_type, &job->residual, error));
    ESP_TRY(take(job, in, job->vectors, problem->act_type, &job->few_x, error));
    ESP_TRY(take(job, out, job->vectors, problem->out_type, &job->few_y, error));
    ESP_TRY(take(job, out, job->vectors, problem->out_type, &job->few_residual, error));
    ESP_TRY(take(job, out, 1, ESP_F32, &job->scale, error));
    ESP_TRY(take(job, out, 1, ESP_F32, &job->bias, error));
    job->bounds = esp_alloc_array(job->context, (size_t)(out * job->vectors), sizeof(double));
    return job->bounds != NULL ? ESP_OK : esp_fail_memory(error, (size_t)out, "a measurement");
}

void tune_operands_free(tune_job *job)
{
    void *const blocks[] = {job->x,     job->y,     job->residual,
                            job->few_x, job->few_y, job->few_residual,
                            job->scale, job->bias,  job->bounds};
    for (int i = 0; i < ESP_COUNT(blocks); i++) {
        esp_release(job->context, blocks[i]);
    }
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

static void fill(esp_dtype dtype, void *data, int64_t count, esp_random *random,
                 tune_numbers numbers, float most)
{
    float piece[PIECE];
    for (int64_t first = 0; first < count; first += PIECE) {
        int64_t length = ESP_MIN(PIECE, count - first);
        for (int64_t i = 0; i < length; i++) {
            piece[i] = number(random, numbers, most);
        }
        esp_narrow(dtype, piece, length, (char *)data + (size_t)first * esp_dtype_bytes(dtype));
    }
}

/* Every token of `all` from its vector of `few`. */
static void spread(const tune_job *job, esp_layout layout, int64_t features, esp_dtype dtype,
                   const char *few, char *all)
{
    size_t width = esp_dtype_bytes(dtype), row = (size_t)features * width;
    int64_t tokens = job->problem.tokens;
    for (int64_t t = 0; t < tokens; t++) {
        int64_t v = tune_vector(job, t);
        if (layout == ESP_TOKEN_MAJOR) {
            memcpy(all + (size_t)t * row, few + (size_t)v * row, row);
            continue;
        }
        for (int64_t f = 0; f < features; f++) {
            memcpy(all + (size_t)(f * tokens + t) * width,
                   few + (size_t)(f * job->vectors + v) * width, width);
        }
    }
}

static void fill_weight(tune_job *job, tune_numbers numbers, float most)
{
    const esp_matmul_problem *problem = &job->problem;
    esp_random random;
    esp_random_seed(&random, job->options.seed + (numbers == TUNE_REALS));
    fill(problem->weight_type, job->dense.data, problem->out_features * problem->in_features,
         &random, numbers, most);
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
    int64_t most = REFERENCE_WORK / (problem->out_features * problem->in_features);
    job->vectors = ESP_MIN(problem->tokens, ESP_MAX(2, ESP_MIN(most, MOST_VECTORS)));
    ESP_TRY(take_all(job, error));
    if (problem->pattern.kind == ESP_PATTERN_DENSE) {
        return ESP_OK;
    }
    fill_weight(job, TUNE_REALS, 1);
    return esp_prune_mask(job->context, &job->dense, &problem->pattern, NULL, &job->mask, NULL,
                          error);
}

esp_status tune_operands_fill(tune_job *job, tune_numbers numbers, esp_error *error)
{
    const esp_matmul_problem *problem = &job->problem;
    int64_t rows = tune_rows(problem), in = problem->in_features;
    esp_random random;
    float most = numbers == TUNE_REALS ? 1 : 4;
    esp_random_seed(&random, job->options.seed + 2);
    fill(problem->act_type, job->few_x, in * job->vectors, &random, numbers, most);
    fill(problem->out_type, job->few_residual, rows * job->vectors, &random, numbers, most);
    fill(ESP_F32, job->scale, problem->out_features, &random, numbers, 2);
    fill(ESP_F32, job->bias, problem->out_features, &random, numbers, most);
    spread(job, problem->x_layout, in, problem->act_type, job->few_x, job->x);
    spread(job, problem->y_layout, rows, problem->out_type, job->few_residual, job->residual);
    fill_weight(job, numbers, most);
    esp_sparse_free(job->sparse);
    job->sparse = NULL;
    if (job->mask != NULL) {
        ESP_TRY(esp_mask_apply(job->mask, &job->dense, error));
    }
    return esp_sparse_encode(job->context, &problem->pattern, &job->dense, job->mask, &job->sparse,
                             error);
}
