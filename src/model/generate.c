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

static esp_status draw(generating *of, const float *logits, int32_t *id, esp_error *error)
{
    int64_t vocabulary = of->session->model->info.vocabulary;
    int64_t chosen = esp_sample(&of->sampler, logits, vocabulary, of->session->order);
    if (chosen < 0) {
        return esp_fail(error, ESP_FAILED, "generate.no_logits",
                        "the model's output is not a number anywhere: its weights are damaged; "
                        "`espalier verify` finds where");
    }
    *id = (int32_t)chosen;
    of->result->new_tokens++;
    return ESP_OK;
}

/* Whether nothing comes behind a token that was drawn; why not is kept. */
static bool has_ended(generating *of, int32_t id, bool wanted, int64_t max_tokens)
{
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
    ESP_TRY(esp_session_feed(session, prompt, prompt_count, session->logits, false, error));
    double fed = esp_seconds();
    for (bool ended = max_tokens == 0; !ended;) {
        int32_t id = 0;
        ESP_TRY(draw(&one, session->logits, &id, error));
        ended = has_ended(&one, id, on_token == NULL || on_token(user, id), max_tokens);
        if (!ended) {
            ESP_TRY(esp_session_feed(session, &id, 1, session->logits, false, error));
        }
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
    float *logits;          /* [count][vocabulary], in the order of `active` */
    int64_t *active;        /* sequences that have not ended */
    esp_session **sessions; /* of them */
    int32_t *ids;           /* their next tokens */
    int64_t active_count;
    esp_sequence_token_fn on_token;
    void *user;
} many;

static esp_status take(esp_context *context, many *all, esp_error *error)
{
    size_t count = (size_t)all->count, floats;
    if (esp_mul_size(count, (size_t)all->vocabulary, &floats)) {
        all->logits = esp_alloc_array(context, floats, sizeof *all->logits);
    }
    all->sequences = esp_alloc_array(context, count, sizeof *all->sequences);
    all->active = esp_alloc_array(context, count, sizeof *all->active);
    all->sessions = esp_alloc_array(context, count, sizeof *all->sessions);
    all->ids = esp_alloc_array(context, count, sizeof *all->ids);
    return all->logits != NULL && all->sequences != NULL && all->active != NULL &&
                   all->sessions != NULL && all->ids != NULL
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
}

static esp_status feed_prompts(many *all, const esp_prompt *prompts, esp_error *error)
{
    for (int64_t i = 0; i < all->count; i++) {
        ESP_TRY(esp_session_feed(prompts[i].session, prompts[i].ids, prompts[i].count,
                                 all->logits + i * all->vocabulary, false, error));
        all->active[i] = i;
    }
    all->active_count = all->max_tokens > 0 ? all->count : 0;
    return ESP_OK;
}

/* A token for each active sequence; those that end leave the list. */
static esp_status draw_all(many *all, esp_error *error)
{
    int64_t left = 0;
    for (int64_t k = 0; k < all->active_count; k++) {
        int64_t index = all->active[k];
        generating *of = &all->sequences[index];
        int32_t id = 0;
        ESP_TRY(draw(of, all->logits + k * all->vocabulary, &id, error));
        bool wanted = all->on_token == NULL || all->on_token(all->user, index, id);
        if (!has_ended(of, id, wanted, all->max_tokens)) {
            all->active[left] = index;
            all->sessions[left] = of->session;
            all->ids[left++] = id;
        }
    }
    all->active_count = left;
    return ESP_OK;
}

/* As many together as the first one's batch holds. */
static esp_status step(const many *all, esp_error *error)
{
    for (int64_t done = 0; done < all->active_count;) {
        int64_t count = ESP_MIN(all->active_count - done, all->sessions[done]->max_batch);
        ESP_TRY(esp_sessions_feed(all->sessions + done, count, all->ids + done,
                                  all->logits + done * all->vocabulary, error));
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
        ESP_TRY(draw_all(all, error));
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
    esp_status status = take(model->context, &all, error);
    if (status == ESP_OK) {
        status = run_many(&all, prompts, chosen, results, error);
    }
    give_back(model->context, &all);
    return status;
}
