/* Retrieval: how well a query's vector finds its document among all documents.
 *
 * Pair i holds a query and the one document that is right for it. Documents are ranked by the
 * cosine of their vectors with the query's; of equals the earlier one comes first, so that results
 * are the same on every run. */
#include <math.h>
#include <string.h>

#include "assess/assess.h"
#include "model/model.h"

#define PARTS 16 /* sums side by side, that vectors of any level take */

typedef struct retrieval_run {
    esp_context *context;
    const esp_retrieval_options *options;
    const esp_text *queries, *documents;
    int64_t pairs;
} retrieval_run;

/* Vectors of one model: [2][pairs][size], queries first, each of length 1. */
typedef struct vectors {
    float *data;
    int64_t size;
    int64_t *ranks; /* of each query's document, from 0; -1: no number */
} vectors;

/* ---- vectors ---- */

static bool to_unit(float *vector, int64_t size)
{
    double squares = 0;
    for (int64_t i = 0; i < size; i++) {
        squares += (double)vector[i] * (double)vector[i];
    }
    for (int64_t i = 0; i < size && squares > 0; i++) {
        vector[i] = (float)((double)vector[i] / sqrt(squares));
    }
    return isfinite(squares);
}

static esp_status embed_all(const retrieval_run *run, const esp_model *model,
                            const esp_tokenizer *tokenizer, vectors *made,
                            esp_embed_result *queries, esp_embed_result *documents,
                            esp_error *error)
{
    esp_embedder *embedder = NULL;
    ESP_TRY(esp_embedder_create(model, 0, &embedder, error));
    const esp_retrieval_options *options = run->options;
    esp_status status =
        esp_embed_texts(embedder, tokenizer, run->queries, run->pairs, options->progress,
                        options->user, made->data, queries, error);
    if (status == ESP_OK) {
        status =
            esp_embed_texts(embedder, tokenizer, run->documents, run->pairs, options->progress,
                            options->user, made->data + run->pairs * made->size, documents, error);
    }
    esp_embedder_free(embedder);
    ESP_TRY(status);
    for (int64_t i = 0; i < 2 * run->pairs; i++) {
        if (!to_unit(made->data + i * made->size, made->size)) {
            return esp_fail(error, ESP_CHECK_FAILED, "eval.not_finite",
                            "%s %lld gets a vector that holds NaN or infinity; 'espalier verify "
                            "--strict' looks for them in the weights",
                            i < run->pairs ? "query" : "document", (long long)(i % run->pairs));
        }
    }
    return ESP_OK;
}

/* ---- ranks ---- */

static float dot(const float *a, const float *b, int64_t size)
{
    float sums[PARTS] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + PARTS <= size; i += PARTS) {
        for (int64_t k = 0; k < PARTS; k++) {
            sums[k] += a[i + k] * b[i + k];
        }
    }
    for (; i < size; i++) {
        sum += a[i] * b[i];
    }
    for (int64_t k = 0; k < PARTS; k++) {
        sum += sums[k];
    }
    return sum;
}

typedef struct rank_job {
    const retrieval_run *run;
    const vectors *made;
} rank_job;

static void rank_queries(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const rank_job *job = user;
    int64_t pairs = job->run->pairs, size = job->made->size;
    const float *documents = job->made->data + pairs * size;
    for (int64_t query = begin; query < end; query++) {
        const float *vector = job->made->data + query * size;
        float right = dot(vector, documents + query * size, size);
        int64_t before = 0;
        for (int64_t i = 0; i < pairs; i++) {
            float score = dot(vector, documents + i * size, size);
            before += score > right || (score == right && i < query);
        }
        job->made->ranks[query] = before;
    }
}

static void sum_up(const retrieval_run *run, const vectors *made, esp_retrieval_scores *scores)
{
    rank_job job = {run, made};
    esp_parallel_for(run->context, run->pairs, 1, rank_queries, &job);
    double first = 0, ten = 0, reciprocal = 0;
    for (int64_t i = 0; i < run->pairs; i++) {
        first += made->ranks[i] < 1;
        ten += made->ranks[i] < 10;
        reciprocal += 1 / (double)(made->ranks[i] + 1);
    }
    double pairs = (double)run->pairs;
    *scores = (esp_retrieval_scores){first / pairs, ten / pairs, reciprocal / pairs};
}

/* Between the same text's vectors by both models. */
static double mean_cosine(const retrieval_run *run, const vectors *a, const vectors *b)
{
    double sum = 0;
    for (int64_t i = 0; i < 2 * run->pairs; i++) {
        sum += (double)dot(a->data + i * a->size, b->data + i * a->size, a->size);
    }
    return sum / (2 * (double)run->pairs);
}

/* ---- set-up ---- */

static esp_status take(const retrieval_run *run, const esp_model *model, vectors *made,
                       esp_error *error)
{
    esp_model_info info;
    esp_model_get_info(model, &info);
    if (info.kind != ESP_MODEL_ENCODER) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "embed.no_encoder",
                        "%s gives no vectors of texts: an encoder is needed", info.architecture);
    }
    size_t floats;
    made->size = info.embedding_size;
    if (esp_mul_size((size_t)run->pairs, 2 * (size_t)made->size, &floats)) {
        made->data = esp_alloc_array(run->context, floats, sizeof *made->data);
        made->ranks = esp_alloc_array(run->context, (size_t)run->pairs, sizeof *made->ranks);
    }
    return made->data != NULL && made->ranks != NULL
               ? ESP_OK
               : esp_fail_memory(error, (size_t)run->pairs, "vectors of texts");
}

static esp_status evaluate(const retrieval_run *run, const esp_model *model,
                           const esp_model *baseline, const esp_tokenizer *tokenizer,
                           vectors made[2], esp_retrieval_result *result, esp_error *error)
{
    esp_embed_result queries, documents, ignored;
    ESP_TRY(take(run, model, &made[0], error));
    ESP_TRY(embed_all(run, model, tokenizer, &made[0], &queries, &documents, error));
    sum_up(run, &made[0], &result->scores);
    result->pairs = run->pairs;
    result->tokens = queries.tokens + documents.tokens;
    result->cut_texts = queries.cut_texts + documents.cut_texts;
    result->seconds = queries.seconds + documents.seconds;
    if (baseline == NULL) {
        return ESP_OK;
    }
    ESP_TRY(take(run, baseline, &made[1], error));
    if (made[1].size != made[0].size) {
        return esp_fail(
            error, ESP_BAD_ARGUMENT, "eval.size_differs",
            "the model's vectors have %lld numbers, the baseline's %lld; give the dense "
            "form of the same model",
            (long long)made[0].size, (long long)made[1].size);
    }
    esp_status status = embed_all(run, baseline, tokenizer, &made[1], &ignored, &ignored, error);
    if (status != ESP_OK) {
        return esp_fail_within(error, status, "baseline");
    }
    sum_up(run, &made[1], &result->baseline);
    result->has_baseline = true;
    result->mean_cosine = mean_cosine(run, &made[0], &made[1]);
    return ESP_OK;
}

esp_status esp_eval_retrieval(const esp_model *model, const esp_model *baseline,
                              const esp_tokenizer *tokenizer, const esp_text *queries,
                              const esp_text *documents, int64_t pairs,
                              const esp_retrieval_options *options, esp_retrieval_result *result,
                              esp_error *error)
{
    static const esp_retrieval_options defaults;
    retrieval_run run = {.context = esp_model_context(model),
                         .options = options != NULL ? options : &defaults,
                         .queries = queries,
                         .documents = documents,
                         .pairs = pairs};
    if (pairs < 1) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.no_text", "there is no pair of texts");
    }
    esp_retrieval_result done = {0};
    vectors made[2] = {0};
    esp_status status = evaluate(&run, model, baseline, tokenizer, made, &done, error);
    for (int i = 0; i < 2; i++) {
        esp_release(run.context, made[i].data);
        esp_release(run.context, made[i].ranks);
    }
    if (status == ESP_OK) {
        *result = done;
    }
    return status;
}
