/* A sequence in progress. All memory is taken when the session is made: the KV cache, one scratch
 * area for the activations of a batch, and the workspace of the largest product or attention that
 * any batch can ask for. Feeding allocates nothing and cuts what it is given into batches. */
#include "model/llama.h"

#define DEFAULT_BATCH 512
#define MOST_ROWS 64 /* of logits that a far device computes before they are fetched */

/* ---- sizes ---- */

static size_t attention_workspace(const esp_session *session)
{
    const esp_llama_config *config = &session->llama->config;
    const esp_device *device = session->model->device;
    size_t most = 0;
    for (int64_t tokens = 1; tokens <= session->max_batch; tokens++) {
        esp_past_attention attention = {.heads = config->heads,
                                        .kv_heads = config->kv_heads,
                                        .head_dim = config->head_dim,
                                        .tokens = tokens,
                                        .one = {.past = (int32_t)(session->capacity - tokens),
                                                .capacity = (int32_t)session->capacity}};
        size_t bytes = session->model->ops->past_workspace_bytes(device, &attention);
        most = ESP_MAX(most, bytes);
    }
    return most;
}

/* ---- memory ---- */

static esp_status take_cache(esp_session *session, esp_error *error)
{
    const esp_llama_config *config = &session->llama->config;
    size_t step, elements;
    session->cached = session->model->by_layer ? 1 : config->layers;
    if (!esp_mul_size((size_t)(config->kv_heads * config->head_dim), (size_t)session->capacity,
                      &step) ||
        !esp_mul_size(step, 2 * (size_t)session->cached, &elements)) {
        return esp_fail_memory(error, SIZE_MAX, "a KV cache");
    }
    session->cache_step = (int64_t)step;
    return esp_device_take(&session->taken, elements, esp_model_width(session->model), "a KV cache",
                           &session->cache, error);
}

static esp_status take_scratch(esp_session *session, esp_error *error)
{
    const esp_llama_config *config = &session->llama->config;
    const esp_model *model = session->model;
    int64_t q = config->heads * config->head_dim, kv = config->kv_heads * config->head_dim;
    int64_t columns = esp_ops_columns(model->ops, session->max_batch);
    const esp_area areas[] = {
        {&session->x, config->hidden},
        {&session->normed, config->hidden},
        {&session->qkv, q + 2 * kv},
        {&session->mixed, q},
        {&session->inner, 2 * config->intermediate},
        esp_moments_area(model, false, config->hidden, columns, &session->moments)};
    ESP_TRY(esp_scratch_take(model, &session->taken, areas, ESP_COUNT(areas), columns,
                             &session->scratch, error));
    ESP_TRY(esp_device_take(&session->taken, (size_t)config->hidden, esp_model_width(model),
                            "scratch memory", &session->last, error));
    size_t angles = ((size_t)(config->head_dim / 2 * columns) + 15) / 16 * 16;
    void *memory = NULL;
    ESP_TRY(esp_device_take(&session->taken, 2 * angles, sizeof(float), "angles", &memory, error));
    session->cosines = memory;
    session->sines = session->cosines + angles;
    return ESP_OK;
}

static size_t line(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static esp_status take_mail(esp_session *session, esp_error *error)
{
    const esp_model *model = session->model;
    esp_llama_mail *mail = &session->mail;
    size_t columns = (size_t)esp_ops_columns(model->ops, session->max_batch);
    size_t places, layers = (size_t)session->llama->config.layers;
    mail->positions_at = line(columns * sizeof(int32_t));
    mail->last_at = 2 * mail->positions_at;
    mail->places_at = mail->last_at + line(sizeof(int32_t));
    if (!esp_mul_size(layers * sizeof(esp_cache_place), (size_t)session->max_batch, &places)) {
        return esp_fail_memory(error, SIZE_MAX, "a batch");
    }
    return esp_taken_mail(&session->taken, mail->places_at + places, "a batch", &mail->mail, error);
}

/* Logits on their way from a far device; elsewhere they are written where they are wanted. */
static esp_status take_rows(esp_session *session, esp_error *error)
{
    const esp_model *model = session->model;
    if (!esp_device_is_far(model->device)) {
        return ESP_OK;
    }
    void *rows = NULL;
    session->row_count = esp_ops_columns(model->ops, ESP_MIN(session->max_batch, MOST_ROWS));
    ESP_TRY(esp_device_take(&session->taken,
                            (size_t)session->row_count * (size_t)model->info.vocabulary,
                            sizeof(float), "logits", &rows, error));
    session->rows = rows;
    return esp_taken_mail(&session->taken, (size_t)session->row_count * sizeof(int32_t), "tokens",
                          &session->best, error);
}

static esp_status take_workspaces(esp_session *session, esp_error *error)
{
    const esp_model *model = session->model;
    size_t product = 0, attention = attention_workspace(session);
    ESP_TRY(esp_product_workspace(model, esp_ops_columns(model->ops, session->max_batch), &product,
                                  error));
    session->workspace_bytes = ESP_MAX(product, 64);
    ESP_TRY(esp_device_take(&session->taken, session->workspace_bytes, 1, "workspaces",
                            &session->workspace, error));
    ESP_TRY(esp_device_take(&session->taken, attention, 1, "workspaces",
                            &session->attention_workspace, error));
    size_t vocabulary = (size_t)model->info.vocabulary;
    size_t slots = 2 * (size_t)esp_model_linears(model);
    session->plans = esp_alloc_array(model->context, slots, sizeof *session->plans);
    size_t batch = (size_t)session->max_batch;
    session->workspaces = esp_alloc_array(model->context, batch, sizeof *session->workspaces);
    session->logits = esp_alloc_array(model->context, vocabulary, sizeof *session->logits);
    session->order = esp_alloc_array(model->context, vocabulary, sizeof *session->order);
    if (session->plans == NULL || session->logits == NULL || session->order == NULL ||
        session->workspaces == NULL) {
        return esp_fail_memory(error, product + attention, "workspaces");
    }
    return ESP_OK;
}

static esp_status take_all(esp_session *session, esp_error *error)
{
    ESP_TRY(esp_lane_open(session->model->device, &session->lane, error));
    ESP_TRY(take_cache(session, error));
    ESP_TRY(take_scratch(session, error));
    ESP_TRY(take_mail(session, error));
    ESP_TRY(take_rows(session, error));
    return take_workspaces(session, error);
}

/* ---- public ---- */

esp_status esp_session_create(const esp_model *model, int64_t capacity, int64_t max_batch,
                              esp_session **session, esp_error *error)
{
    if (model->family->kind != ESP_MODEL_DECODER) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "session.no_decoder",
                        "%s gives no text: a session needs a decoder", model->info.architecture);
    }
    if (capacity < 1 || capacity > model->info.context) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "session.bad_capacity",
                        "a session of %lld tokens: the model can hold 1 to %lld",
                        (long long)capacity, (long long)model->info.context);
    }
    if (max_batch < 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "session.bad_batch",
                        "batches of %lld tokens: expected 0 (default) or more",
                        (long long)max_batch);
    }
    esp_session *made = esp_alloc_zero(model->context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a session");
    }
    made->model = model;
    made->taken = esp_taken_of(model);
    made->llama = model->parts;
    made->capacity = capacity;
    made->max_batch = ESP_MIN(max_batch > 0 ? max_batch : DEFAULT_BATCH, capacity);
    esp_status status = take_all(made, error);
    if (status != ESP_OK) {
        esp_session_free(made);
        return status;
    }
    *session = made;
    return ESP_OK;
}

void esp_session_free(esp_session *session)
{
    if (session == NULL) {
        return;
    }
    esp_device *device = session->model->device;
    esp_context *context = session->model->context;
    void *const areas[] = {session->cache,   session->scratch,   session->last,
                           session->cosines, session->workspace, session->attention_workspace,
                           session->rows};
    esp_lane_close(&session->lane);
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        if (areas[i] != NULL) {
            device->backend->release(device, areas[i]);
        }
    }
    esp_mail_free(device, &session->mail.mail);
    esp_mail_free(device, &session->best);
    esp_taken_drop(&session->taken);
    esp_release(context, session->plans);
    esp_release(context, session->workspaces);
    esp_release(context, session->logits);
    esp_release(context, session->order);
    esp_release(context, session);
}

int64_t esp_session_length(const esp_session *session)
{
    return session->length;
}

void esp_session_truncate(esp_session *session, int64_t length)
{
    if (length >= 0 && length < session->length) {
        session->length = length;
    }
}

void esp_session_observe(esp_session *session, esp_observe_fn observe, void *user)
{
    session->observe = observe;
    session->observe_user = user;
}

static esp_status check_feed(const esp_session *session, const int32_t *ids, int64_t count,
                             esp_error *error)
{
    if (count < 1) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "session.empty",
                        "no tokens were given; a prompt needs at least one (for instance BOS)");
    }
    if (count > session->capacity - session->length) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "session.full",
                        "%lld tokens more than the %lld there are would pass the session's %lld",
                        (long long)count, (long long)session->length, (long long)session->capacity);
    }
    int64_t vocabulary = session->model->info.vocabulary;
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= vocabulary) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "session.bad_token",
                            "token %lld has id %d, but the model knows 0 to %lld; the tokenizer "
                            "belongs to another model",
                            (long long)i, (int)ids[i], (long long)vocabulary - 1);
        }
    }
    return ESP_OK;
}

/* What comes back of a feed: logits, or on far devices the ids of the largest; NULL: nothing. */
typedef struct wanted {
    float *logits;
    bool all_logits;
    int32_t *best;
} wanted;

static esp_status feed(esp_session *session, const int32_t *ids, int64_t count, wanted want,
                       esp_error *error)
{
    ESP_TRY(check_feed(session, ids, count, error));
    int64_t before = session->length, vocabulary = session->model->info.vocabulary;
    for (int64_t done = 0; done < count;) {
        int64_t tokens = ESP_MIN(session->max_batch, count - done);
        bool last = done + tokens == count;
        esp_llama_batch batch = {
            .ids = ids + done, .tokens = tokens, .all_logits = want.all_logits};
        if (want.logits != NULL && (want.all_logits || last)) {
            batch.logits = want.all_logits ? want.logits + done * vocabulary : want.logits;
        }
        batch.best = last ? want.best : NULL;
        esp_status status = esp_llama_forward(session, &batch, error);
        if (status != ESP_OK) {
            session->length = before;
            return status;
        }
        session->length += tokens;
        done += tokens;
    }
    /* what is not fetched may be under way; another session may lead the next step */
    return want.logits == NULL && want.best == NULL ? esp_lane_ready(&session->lane, error)
                                                    : ESP_OK;
}

esp_status esp_session_feed(esp_session *session, const int32_t *ids, int64_t count, float *logits,
                            bool all_logits, esp_error *error)
{
    const wanted want = {.logits = logits, .all_logits = all_logits};
    return feed(session, ids, count, want, error);
}

esp_status esp_session_feed_greedy(esp_session *session, const int32_t *ids, int64_t count,
                                   int32_t *next, esp_error *error)
{
    bool far = esp_device_is_far(session->model->device);
    const wanted want = {.logits = far ? NULL : session->logits, .best = far ? next : NULL};
    ESP_TRY(feed(session, ids, count, want, error));
    return far ? ESP_OK
               : esp_host_argmax(NULL, NULL, session->logits, 1, session->model->info.vocabulary,
                                 next);
}

/* ---- several sequences, a token each ---- */

static esp_status check_step(esp_session *const *sessions, int64_t count, const int32_t *ids,
                             esp_error *error)
{
    if (count < 1 || count > sessions[0]->max_batch) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "session.bad_batch",
                        "%lld sequences: expected 1 to %lld, which is the batch of the first",
                        (long long)count, count < 1 ? 1LL : (long long)sessions[0]->max_batch);
    }
    for (int64_t i = 0; i < count; i++) {
        for (int64_t k = 0; k < i; k++) {
            if (sessions[k] == sessions[i] || sessions[k]->model != sessions[i]->model) {
                return esp_fail(error, ESP_BAD_ARGUMENT, "session.not_apart",
                                "sequences %lld and %lld must be different ones of one model",
                                (long long)k, (long long)i);
            }
        }
        ESP_TRY(check_feed(sessions[i], &ids[i], 1, error));
    }
    return ESP_OK;
}

/* Of what was checked. */
static esp_status step(esp_session *const *sessions, int64_t count, const int32_t *ids, wanted want,
                       esp_error *error)
{
    esp_llama_batch batch = {.ids = ids,
                             .tokens = count,
                             .logits = want.logits,
                             .all_logits = true,
                             .best = want.best,
                             .sessions = count > 1 ? sessions : NULL};
    ESP_TRY(esp_llama_forward(sessions[0], &batch, error));
    for (int64_t i = 0; i < count; i++) {
        sessions[i]->length++;
    }
    return ESP_OK;
}

esp_status esp_sessions_feed(esp_session *const *sessions, int64_t count, const int32_t *ids,
                             float *logits, esp_error *error)
{
    const wanted want = {.logits = logits};
    ESP_TRY(check_step(sessions, count, ids, error));
    return step(sessions, count, ids, want, error);
}

static esp_status step_near(esp_session *const *sessions, int64_t count, const int32_t *ids,
                            int32_t *next, esp_error *error)
{
    const esp_model *model = sessions[0]->model;
    size_t floats = (size_t)count * (size_t)model->info.vocabulary; /* no more than a batch */
    float *logits = esp_alloc_array(model->context, floats, sizeof *logits);
    if (logits == NULL) {
        return esp_fail_memory(error, floats * sizeof *logits, "logits");
    }
    const wanted want = {.logits = logits};
    esp_status status = step(sessions, count, ids, want, error);
    if (status == ESP_OK) {
        status = esp_host_argmax(NULL, NULL, logits, count, model->info.vocabulary, next);
    }
    esp_release(model->context, logits);
    return status;
}

esp_status esp_sessions_feed_greedy(esp_session *const *sessions, int64_t count, const int32_t *ids,
                                    int32_t *next, esp_error *error)
{
    const wanted want = {.best = next};
    ESP_TRY(check_step(sessions, count, ids, error));
    return esp_device_is_far(sessions[0]->model->device)
               ? step(sessions, count, ids, want, error)
               : step_near(sessions, count, ids, next, error);
}
