/* Text by repetition: feed, sample, feed the sample. */
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

static esp_status choose(esp_session *session, esp_sampler *sampler, int32_t *id, esp_error *error)
{
    int64_t chosen =
        esp_sample(sampler, session->logits, session->model->info.vocabulary, session->order);
    if (chosen < 0) {
        return esp_fail(error, ESP_FAILED, "generate.no_logits",
                        "the model's output is not a number anywhere: its weights are damaged; "
                        "`espalier verify` finds where");
    }
    *id = (int32_t)chosen;
    return ESP_OK;
}

/* Samples until something says stop; *stop says what. */
static esp_status decode(esp_session *session, int64_t max_tokens, esp_sampler *sampler,
                         esp_token_fn on_token, void *user, esp_generation *result,
                         esp_error *error)
{
    while (result->new_tokens < max_tokens) {
        int32_t id = 0;
        ESP_TRY(choose(session, sampler, &id, error));
        result->new_tokens++;
        bool go_on = on_token == NULL || on_token(user, id);
        if (is_eos(session->model, id)) {
            result->stop = ESP_STOP_EOS;
            return ESP_OK;
        }
        if (!go_on) {
            result->stop = ESP_STOP_CALLBACK;
            return ESP_OK;
        }
        if (result->new_tokens == max_tokens) {
            break;
        }
        if (session->length == session->capacity) {
            result->stop = ESP_STOP_CONTEXT;
            return ESP_OK;
        }
        ESP_TRY(esp_session_feed(session, &id, 1, session->logits, false, error));
    }
    result->stop = ESP_STOP_LIMIT;
    return ESP_OK;
}

esp_status esp_generate(esp_session *session, const int32_t *prompt, int64_t prompt_count,
                        int64_t max_tokens, const esp_sampling *sampling, esp_token_fn on_token,
                        void *user, esp_generation *result, esp_error *error)
{
    const esp_sampling greedy = {0};
    const esp_sampling *chosen = sampling != NULL ? sampling : &greedy;
    ESP_TRY(check(chosen, max_tokens, error));
    esp_sampler sampler = {.temperature = chosen->temperature, .top_p = chosen->top_p};
    esp_random_seed(&sampler.random, chosen->seed);
    esp_generation done = {.prompt_tokens = prompt_count};
    double start = esp_seconds();
    ESP_TRY(esp_session_feed(session, prompt, prompt_count, session->logits, false, error));
    double fed = esp_seconds();
    ESP_TRY(decode(session, max_tokens, &sampler, on_token, user, &done, error));
    done.prefill_seconds = fed - start;
    done.decode_seconds = esp_seconds() - fed;
    if (result != NULL) {
        *result = done;
    }
    return ESP_OK;
}
