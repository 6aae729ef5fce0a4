/* Vectors of texts. Texts are put one behind the other until a batch is full, so that products see
 * many tokens and none is padding; then each text's tokens are pooled into one vector. All memory
 * is taken when the embedder is made. */
#include "model/bert.h"

#define DEFAULT_BATCH 2048
#define MOST_BATCH ((int64_t)1 << 20)
#define MAX_TEMPLATE 16

/* ---- memory ---- */

static esp_status take_scratch(esp_embedder *embedder, esp_error *error)
{
    const esp_bert_config *config = &embedder->bert->config;
    const esp_area areas[] = {{&embedder->x, config->hidden},
                              {&embedder->qkv, 3 * config->hidden},
                              {&embedder->mixed, config->hidden},
                              {&embedder->inner, config->intermediate}};
    return esp_scratch_take(embedder->model, &embedder->taken, areas, ESP_COUNT(areas),
                            embedder->max_tokens, &embedder->scratch, error);
}

static esp_status take_workspaces(esp_embedder *embedder, esp_error *error)
{
    const esp_model *model = embedder->model;
    const esp_ops *ops = model->ops;
    size_t product = 0;
    ESP_TRY(esp_product_workspace(model, embedder->max_tokens, &product, error));
    esp_group_call call = {.columns = embedder->max_tokens,
                           .groups = embedder->max_texts,
                           .tokens = model->info.context,
                           .varied = true};
    esp_group_attention longest =
        esp_group_attention_of(ops, &embedder->bert->layers[0].attention, &call);
    size_t attention = ops->group_workspace_bytes(model->device, &longest);
    embedder->workspace_bytes = ESP_MAX(product, 64);
    ESP_TRY(esp_device_take(&embedder->taken, embedder->workspace_bytes, 1, "workspaces",
                            &embedder->workspace, error));
    return esp_device_take(&embedder->taken, attention, 1, "workspaces",
                           &embedder->attention_workspace, error);
}

static esp_status take_lists(esp_embedder *embedder, esp_error *error)
{
    const esp_model *model = embedder->model;
    size_t slots = 2 * (size_t)esp_model_linears(model);
    embedder->plans = esp_alloc_array(model->context, slots, sizeof *embedder->plans);
    if (embedder->plans == NULL) {
        return esp_fail_memory(error, slots * sizeof *embedder->plans, "a batch");
    }
    embedder->mail.step = ((size_t)embedder->max_tokens * sizeof(int32_t) + 63) / 64 * 64;
    ESP_TRY(esp_taken_mail(&embedder->taken, 5 * embedder->mail.step, "a batch",
                           &embedder->mail.mail, error));
    if (!esp_device_is_far(model->device)) {
        return ESP_OK;
    }
    void *vectors = NULL;
    ESP_TRY(esp_device_take(&embedder->taken,
                            (size_t)embedder->max_texts * (size_t)model->info.embedding_size,
                            sizeof(float), "vectors", &vectors, error));
    embedder->vectors = vectors;
    return ESP_OK;
}

static esp_status take_all(esp_embedder *embedder, esp_error *error)
{
    ESP_TRY(esp_lane_open(embedder->model->device, &embedder->lane, error));
    ESP_TRY(take_scratch(embedder, error));
    ESP_TRY(take_workspaces(embedder, error));
    return take_lists(embedder, error);
}

esp_status esp_embedder_create(const esp_model *model, int64_t max_tokens, esp_embedder **embedder,
                               esp_error *error)
{
    if (model->family != &esp_bert_family) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "embed.no_encoder",
                        "%s gives no vectors of texts: an encoder is needed",
                        model->info.architecture);
    }
    if (max_tokens < 0 || max_tokens > MOST_BATCH) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "embed.bad_batch",
                        "batches of %lld tokens: expected 0 (default) to %lld",
                        (long long)max_tokens, (long long)MOST_BATCH);
    }
    esp_embedder *made = esp_alloc_zero(model->context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "an embedder");
    }
    made->model = model;
    made->taken = esp_taken_of(model);
    made->bert = model->parts;
    made->max_tokens = esp_ops_columns(
        model->ops, ESP_MAX(max_tokens > 0 ? max_tokens : DEFAULT_BATCH, model->info.context));
    made->max_texts = made->max_tokens / model->ops->step;
    esp_status status = take_all(made, error);
    if (status != ESP_OK) {
        esp_embedder_free(made);
        return status;
    }
    *embedder = made;
    return ESP_OK;
}

void esp_embedder_free(esp_embedder *embedder)
{
    if (embedder == NULL) {
        return;
    }
    esp_device *device = embedder->model->device;
    esp_context *context = embedder->model->context;
    void *const areas[] = {embedder->scratch, embedder->workspace, embedder->attention_workspace,
                           embedder->vectors};
    esp_lane_close(&embedder->lane);
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        if (areas[i] != NULL) {
            device->backend->release(device, areas[i]);
        }
    }
    esp_mail_free(device, &embedder->mail.mail);
    esp_taken_drop(&embedder->taken);
    esp_release(context, embedder->plans);
    esp_release(context, embedder);
}

void esp_embedder_observe(esp_embedder *embedder, esp_observe_fn observe, void *user)
{
    embedder->observe = observe;
    embedder->observe_user = user;
}

/* ---- ids ---- */

static esp_status check_text(const esp_model_info *info, int64_t text, const int32_t *ids,
                             int64_t length, esp_error *error)
{
    if (length < 1 || length > info->context) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "embed.bad_length",
                        "text %lld has %lld tokens, the model takes 1 to %lld", (long long)text,
                        (long long)length, (long long)info->context);
    }
    for (int64_t i = 0; i < length; i++) {
        if (ids[i] < 0 || ids[i] >= info->vocabulary) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "embed.bad_token",
                            "token %lld of text %lld has id %d, but the model knows 0 to %lld; the "
                            "tokenizer belongs to another model",
                            (long long)i, (long long)text, (int)ids[i],
                            (long long)info->vocabulary - 1);
        }
    }
    return ESP_OK;
}

esp_status esp_embed_ids(esp_embedder *embedder, const int32_t *ids, const int64_t *lengths,
                         int64_t texts, float *vectors, esp_error *error)
{
    const esp_model_info *info = &embedder->model->info;
    const int32_t *next = ids;
    for (int64_t i = 0; i < texts; i++) {
        ESP_TRY(check_text(info, i, next, lengths[i], error));
        next += lengths[i];
    }
    for (int64_t done = 0; done < texts;) {
        esp_bert_batch batch = {.ids = ids,
                                .lengths = lengths + done,
                                .vectors = vectors + done * info->embedding_size};
        while (done + batch.texts < texts) {
            int64_t length = lengths[done + batch.texts];
            int64_t columns = batch.columns + esp_ops_pitch(embedder->model->ops, length);
            if (columns > embedder->max_tokens) {
                break;
            }
            batch.columns = columns;
            batch.texts++;
            ids += length;
        }
        batch.columns = esp_ops_columns(embedder->model->ops, batch.columns);
        ESP_TRY(esp_bert_forward(embedder, &batch, error));
        done += batch.texts;
    }
    return ESP_OK;
}

/* ---- texts ---- */

/* Texts that are tokenised and run together. */
typedef struct text_run {
    esp_embedder *embedder;
    const esp_tokenizer *tokenizer;
    int32_t *ids;     /* [max_tokens] */
    int64_t *lengths; /* [max_tokens] */
    int64_t texts, tokens;
    int32_t before[MAX_TEMPLATE], behind[MAX_TEMPLATE];
    int before_count, behind_count;
    esp_embed_result result;
} text_run;

/* The template's tokens stay when a text is cut. */
static int64_t append_text(text_run *run, int32_t *to, const int32_t *ids, int64_t count)
{
    int64_t room = run->embedder->model->info.context - run->before_count - run->behind_count;
    int64_t kept = ESP_MIN(count, room);
    memcpy(to, run->before, (size_t)run->before_count * sizeof *to);
    if (kept > 0) {
        memcpy(to + run->before_count, ids, (size_t)kept * sizeof *to);
    }
    memcpy(to + run->before_count + kept, run->behind, (size_t)run->behind_count * sizeof *to);
    run->result.cut_texts += kept < count;
    return run->before_count + kept + run->behind_count;
}

/* Runs what has gathered; vectors are those of its first text. */
static esp_status flush(text_run *run, float *vectors, esp_error *error)
{
    esp_status status =
        esp_embed_ids(run->embedder, run->ids, run->lengths, run->texts, vectors, error);
    run->result.tokens += run->tokens;
    run->texts = run->tokens = 0;
    return status;
}

static esp_status add_text(text_run *run, int64_t number, const esp_text *text, float *vectors,
                           esp_error *error)
{
    const esp_model_info *info = &run->embedder->model->info;
    int32_t *ids = NULL;
    int64_t count = 0;
    if (run->tokens + info->context > run->embedder->max_tokens && run->texts > 0) {
        ESP_TRY(flush(run, vectors + (number - run->texts) * info->embedding_size, error));
    }
    ESP_TRY(
        esp_tokenizer_encode(run->tokenizer, text->data, text->length, false, &ids, &count, error));
    int64_t length = append_text(run, run->ids + run->tokens, ids, count);
    esp_ids_free(run->tokenizer, ids);
    if (length == 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "embed.bad_length",
                        "text %lld is empty and the tokenizer puts nothing around it",
                        (long long)number);
    }
    run->lengths[run->texts++] = length;
    run->tokens += length;
    return ESP_OK;
}

static esp_status run_texts(text_run *run, const esp_text *texts, int64_t count,
                            esp_progress_fn progress, void *user, float *vectors, esp_error *error)
{
    int64_t size = run->embedder->model->info.embedding_size;
    for (int64_t i = 0; i < count; i++) {
        if (progress != NULL && !progress(user, "embedding", (double)i, (double)count, "texts")) {
            return esp_fail(error, ESP_CANCELLED, "cancelled", "embedding was interrupted");
        }
        ESP_TRY(add_text(run, i, &texts[i], vectors, error));
    }
    return run->texts > 0 ? flush(run, vectors + (count - run->texts) * size, error) : ESP_OK;
}

esp_status esp_embed_texts(esp_embedder *embedder, const esp_tokenizer *tokenizer,
                           const esp_text *texts, int64_t count, esp_progress_fn progress,
                           void *user, float *vectors, esp_embed_result *result, esp_error *error)
{
    esp_context *context = embedder->model->context;
    size_t most = (size_t)embedder->max_tokens;
    text_run run = {.embedder = embedder, .tokenizer = tokenizer};
    run.before_count = esp_tokenizer_prefix(tokenizer, run.before, MAX_TEMPLATE);
    run.behind_count = esp_tokenizer_suffix(tokenizer, run.behind, MAX_TEMPLATE);
    if (run.before_count + run.behind_count > embedder->model->info.context) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "embed.bad_length",
                        "the tokenizer puts %d tokens around a text, the model takes %lld",
                        run.before_count + run.behind_count,
                        (long long)embedder->model->info.context);
    }
    double start = esp_seconds();
    run.ids = esp_alloc_array(context, most, sizeof *run.ids);
    run.lengths = esp_alloc_array(context, most, sizeof *run.lengths);
    esp_status status = run.ids != NULL && run.lengths != NULL
                            ? run_texts(&run, texts, count, progress, user, vectors, error)
                            : esp_fail_memory(error, most * sizeof *run.lengths, "a batch");
    esp_release(context, run.ids);
    esp_release(context, run.lengths);
    run.result.seconds = esp_seconds() - start;
    if (status == ESP_OK && result != NULL) {
        *result = run.result;
    }
    return status;
}
