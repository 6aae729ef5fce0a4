/* Text by repetition: feed, sample, feed the sample; of one sequence, or of several in step. */
#include "model/llama.h"

static esp_status check(const esp_sampling *sampling, int64_t max_tokens, esp_error *error)
{
    if (!(sampling->temperature >= 0) || !(sampling->top_p >= 0 && sampling->top_p <= 1)) {
        return esp_fail(
            error, ESP_BAD_ARGUMENT, "generate.bad_sampling",
            "temperature %g, top_p %g: expected a temperature of 0 or more and top_p in "
            "0..1",
            (double)sampling->temperature, (double)sampling->top_p);
    }
    if (max_tokens < 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "generate.bad_limit",
                        "max_tokens is %lld, expected 0 or more", (long long)max_tokens);
    }
    return ESP_OK;
}

static bool is_eos(const esp_model *model, int32_t id)
{
    for (int i = 0; i < model->info.eos_count; i++) {
        if (model->info.eos[i] == id) {
            return true;
        }
    }
    return false;
}

/* One sequence on its way. */
typedef struct generating {
    esp_session *session;
    esp_sampler sampler;
    esp_generation *result;
} generating;

static generating begin(esp_session *session, const esp_sampling *sampling, uint64_t seed,
                        int64_t prompt_count, esp_generation *result)
{
    generating made = {.session = session, .result = result};
    made.sampler = (esp_sampler){.temperature = sampling->temperature, .top_p = sampling->top_p};
    esp_random_seed(&made.sampler.random, seed);
    *result = (esp_generation){.prompt_tokens = prompt_count};
    return made;
}

static esp_status check_drawn(int64_t id, esp_error *error)
{
    return id >= 0 ? ESP_OK
                   : esp_fail(error, ESP_FAILED, "generate.no_logits",
                              "the model's output is not a number anywhere: its weights are "
                              "damaged; `espalier verify` finds where");
}

static esp_status draw(generating *of, const float *logits, int32_t *id, esp_error *error)
{
    int64_t vocabulary = of->session->model->info.vocabulary;
    int64_t chosen = esp_sample(&of->sampler, logits, vocabulary, of->session->order);
    *id = (int32_t)chosen;
    return check_drawn(chosen, error);
}

static bool is_greedy(const generating *of)
{
    return of->sampler.temperature == 0;
}

/* Feeds, and draws what follows. A greedy choice is the device's, which keeps the logits. */
static esp_status feed(generating *of, const int32_t *ids, int64_t count, int32_t *next,
                       esp_error *error)
{
    esp_session *session = of->session;
    if (is_greedy(of)) {
        ESP_TRY(esp_session_feed_greedy(session, ids, count, next, error));
        return check_drawn(*next, error);
    }
    ESP_TRY(esp_session_feed(session, ids, count, session->logits, false, error));
    return draw(of, session->logits, next, error);
}

/* Whether nothing comes behind a token that was drawn; why not is kept. */
static bool has_ended(generating *of, int32_t id, bool wanted, int64_t max_tokens)
{
    of->result->new_tokens++;
    bool eos = is_eos(of->session->model, id);
    bool limit = of->result->new_tokens == max_tokens;
    bool full = of->session->length == of->session->capacity;
    of->result->stop = eos       ? ESP_STOP_EOS
                       : !wanted ? ESP_STOP_CALLBACK
                       : limit   ? ESP_STOP_LIMIT
                       : full    ? ESP_STOP_CONTEXT
                                 : ESP_STOP_LIMIT;
    return eos || !wanted || limit || full;
}

esp_status esp_generate(esp_session *session, const int32_t *prompt, int64_t prompt_count,
                        int64_t max_tokens, const esp_sampling *sampling, esp_token_fn on_token,
                        void *user, esp_generation *result, esp_error *error)
{
    const esp_sampling greedy = {0};
    const esp_sampling *chosen = sampling != NULL ? sampling : &greedy;
    esp_generation done;
    ESP_TRY(check(chosen, max_tokens, error));
    generating one = begin(session, chosen, chosen->seed, prompt_count, &done);
    double start = esp_seconds();
    int32_t id = 0;
    ESP_TRY(max_tokens > 0 ? feed(&one, prompt, prompt_count, &id, error)
                           : esp_session_feed(session, prompt, prompt_count, NULL, false, error));
    double fed = esp_seconds();
    for (bool ended = max_tokens == 0; !ended;) {
        const int32_t last = id;
        ended = has_ended(&one, last, on_token == NULL || on_token(user, last), max_tokens);
        ESP_TRY(ended ? ESP_OK : feed(&one, &last, 1, &id, error));
    }
    done.prefill_seconds = fed - start;
    done.decode_seconds = esp_seconds() - fed;
    if (result != NULL) {
        *result = done;
    }
    return ESP_OK;
}

/* ---- several at once ---- */

typedef struct many {
    int64_t count, max_tokens, vocabulary;
    generating *sequences;  /* [count] */
    float *logits;          /* [count][vocabulary], in the order of `active`; NULL: greedy */
    int64_t *active;        /* sequences that have not ended */
    esp_session **sessions; /* of them */
    int32_t *ids, *next;    /* their last tokens, and those that follow */
    int64_t active_count;
    esp_sequence_token_fn on_token;
    void *user;
} many;

static esp_status take(esp_context *context, const esp_sampling *sampling, many *all,
                       esp_error *error)
{
    size_t count = (size_t)all->count, floats = 0;
    bool samples = sampling->temperature > 0;
    if (samples && esp_mul_size(count, (size_t)all->vocabulary, &floats)) {
        all->logits = esp_alloc_array(context, floats, sizeof *all->logits);
    }
    all->sequences = esp_alloc_array(context, count, sizeof *all->sequences);
    all->active = esp_alloc_array(context, count, sizeof *all->active);
    all->sessions = esp_alloc_array(context, count, sizeof *all->sessions);
    all->ids = esp_alloc_array(context, count, sizeof *all->ids);
    all->next = esp_alloc_array(context, count, sizeof *all->next);
    return (all->logits != NULL || !samples) && all->sequences != NULL && all->active != NULL &&
                   all->sessions != NULL && all->ids != NULL && all->next != NULL
               ? ESP_OK
               : esp_fail_memory(error, count * sizeof *all->sequences, "several sequences");
}

static void give_back(esp_context *context, many *all)
{
    esp_release(context, all->logits);
    esp_release(context, all->sequences);
    esp_release(context, all->active);
    esp_release(context, all->sessions);
    esp_release(context, all->ids);
    esp_release(context, all->next);
}

static esp_status feed_prompts(many *all, const esp_prompt *prompts, esp_error *error)
{
    for (int64_t i = 0; i < all->count; i++) {
        const esp_prompt *prompt = &prompts[i];
        ESP_TRY(all->max_tokens > 0
                    ? feed(&all->sequences[i], prompt->ids, prompt->count, &all->next[i], error)
                    : esp_session_feed(prompt->session, prompt->ids, prompt->count, NULL, false,
                                       error));
        all->active[i] = i;
    }
    all->active_count = all->max_tokens > 0 ? all->count : 0;
    return ESP_OK;
}

/* Each active sequence takes its token; those that end leave the list. */
static void take_tokens(many *all)
{
    int64_t left = 0;
    for (int64_t k = 0; k < all->active_count; k++) {
        int64_t index = all->active[k];
        generating *of = &all->sequences[index];
        int32_t id = all->next[k];
        bool wanted = all->on_token == NULL || all->on_token(all->user, index, id);
        if (!has_ended(of, id, wanted, all->max_tokens)) {
            all->active[left] = index;
            all->sessions[left] = of->session;
            all->ids[left++] = id;
        }
    }
    all->active_count = left;
}

/* Sequences first.. of the active ones, which run together. */
static esp_status step_some(const many *all, int64_t first, int64_t count, esp_error *error)
{
    esp_session *const *sessions = all->sessions + first;
    const int32_t *ids = all->ids + first;
    int32_t *next = all->next + first;
    if (all->logits == NULL) {
        ESP_TRY(esp_sessions_feed_greedy(sessions, count, ids, next, error));
        for (int64_t k = 0; k < count; k++) {
            ESP_TRY(check_drawn(next[k], error));
        }
        return ESP_OK;
    }
    ESP_TRY(esp_sessions_feed(sessions, count, ids, all->logits, error));
    for (int64_t k = 0; k < count; k++) {
        ESP_TRY(draw(&all->sequences[all->active[first + k]], all->logits + k * all->vocabulary,
                     &next[k], error));
    }
    return ESP_OK;
}

/* As many together as the first one's batch holds. */
static esp_status step(const many *all, esp_error *error)
{
    for (int64_t done = 0; done < all->active_count;) {
        int64_t count = ESP_MIN(all->active_count - done, all->sessions[done]->max_batch);
        ESP_TRY(step_some(all, done, count, error));
        done += count;
    }
    return ESP_OK;
}

static esp_status run_many(many *all, const esp_prompt *prompts, const esp_sampling *sampling,
                           esp_generation *results, esp_error *error)
{
    for (int64_t i = 0; i < all->count; i++) {
        all->sequences[i] = begin(prompts[i].session, sampling, sampling->seed + (uint64_t)i,
                                  prompts[i].count, &results[i]);
    }
    double start = esp_seconds();
    ESP_TRY(feed_prompts(all, prompts, error));
    double fed = esp_seconds();
    while (all->active_count > 0) {
        take_tokens(all);
        ESP_TRY(step(all, error));
    }
    for (int64_t i = 0; i < all->count; i++) {
        results[i].prefill_seconds = fed - start;
        results[i].decode_seconds = esp_seconds() - fed;
    }
    return ESP_OK;
}

esp_status esp_generate_many(const esp_prompt *prompts, int64_t count, int64_t max_tokens,
                             const esp_sampling *sampling, esp_sequence_token_fn on_token,
                             void *user, esp_generation *results, esp_error *error)
{
    const esp_sampling greedy = {0};
    const esp_sampling *chosen = sampling != NULL ? sampling : &greedy;
    ESP_TRY(check(chosen, max_tokens, error));
    if (count < 1) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "session.empty", "no prompt was given");
    }
    const esp_model *model = prompts[0].session->model;
    many all = {.count = count,
                .max_tokens = max_tokens,
                .vocabulary = model->info.vocabulary,
                .on_token = on_token,
                .user = user};
    esp_status status = take(model->context, chosen, &all, error);
    if (status == ESP_OK) {
        status = run_many(&all, prompts, chosen, results, error);
    }
    give_back(model->context, &all);
    return status;
}
