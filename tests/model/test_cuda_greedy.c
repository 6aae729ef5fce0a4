/* The shipped model's greedy texts on a GPU: every token that the device chooses is the one that
 * the processor, given the same tokens before it, finds likeliest, or so near it that rounding to
 * 16 bits decides. Dense and pruned, weights of bf16 and of f16. TEST_SHOW prints how many are the
 * same and where the first is not. */
#include <math.h>

#include <espalier/prune.h>

#include "golden_model.h"
#include "greedy.h"

enum { NEW_TOKENS = 256, CONTEXT = 384 };

static const char *const prompts[] = {
    "The history of the city begins with", "She opened the door and saw",
    "1. Permission is hereby granted, free of charge, to any person"};
static const char *const patterns[] = {NULL, "2:4", "64:2:8"};

/* How much likelier another token may be, over the largest logit: activations are rounded some
 * fifty times on the way through six layers, by 2^-9 or 2^-12 at most, one way or the other. */
static double bound_of(esp_dtype dtype)
{
    return dtype == ESP_F16 ? 0x1p-10 : 0x1p-7;
}

/* ---- the model ---- */

static void copy_file(test_run *run, esp_context *context, const char *from, const char *to)
{
    char *data = NULL;
    size_t length = 0;
    REQUIRE_OK(esp_file_read_all(context, from, 1 << 20, "too_large", &data, &length, error));
    test_write_file(run, to, data, length);
    esp_release(context, data);
}

/* Weights of bf16, all of them, as f16: nearly all are exact. */
static void write_f16_weights(test_run *run, esp_context *context, const char *from, const char *to)
{
    char *data = NULL;
    size_t length = 0;
    uint64_t header;
    REQUIRE_OK(esp_file_read_all(context, from, 1 << 26, "too_large", &data, &length, error));
    memcpy(&header, data, sizeof header);
    for (char *at = data + 8; (at = memmem(at, header - (size_t)(at - data - 8), "\"BF16\"", 6));) {
        memcpy(at, "\"F16\" ", 6);
    }
    char *weights = data + 8 + header;
    int64_t count = (int64_t)(length - 8 - header) / 2;
    float *values = malloc((size_t)count * sizeof *values);
    esp_widen(ESP_BF16, weights, count, values);
    esp_narrow(ESP_F16, values, count, weights);
    test_write_file(run, to, data, length);
    free(values);
    esp_release(context, data);
}

/* A folder with weights of the type, pruned where there is a pattern. */
static void make_folder(test_run *run, esp_context *context, const char *model, esp_dtype dtype,
                        const char *pattern, char made[512])
{
    static const char *const names[] = {"config.json", "generation_config.json"};
    char from[600], to[600], whole[512];
    static int count;
    snprintf(whole, sizeof whole, "%s/whole%d", test_folder(run), ++count);
    snprintf(made, 512, "%s", dtype == ESP_BF16 ? model : whole);
    if (dtype == ESP_F16) {
        REQUIRE_OK(esp_folder_create(whole, error));
        for (int i = 0; i < ESP_COUNT(names); i++) {
            snprintf(from, sizeof from, "%s/%s", model, names[i]);
            snprintf(to, sizeof to, "%s/%s", whole, names[i]);
            copy_file(run, context, from, to);
        }
        snprintf(from, sizeof from, "%s/model.safetensors", model);
        snprintf(to, sizeof to, "%s/model.safetensors", whole);
        write_f16_weights(run, context, from, to);
    }
    if (pattern != NULL) {
        esp_prune_options options = {0};
        snprintf(whole, sizeof whole, "%s", made);
        snprintf(made, 512, "%s/pruned%d", test_folder(run), count);
        REQUIRE_OK(esp_pattern_parse(pattern, &options.pattern, error));
        REQUIRE_OK(esp_prune_checkpoint(context, whole, made, &options, NULL, error));
    }
}

/* ---- comparing ---- */

typedef struct agreement {
    int same, first; /* tokens; the first that is another, or NEW_TOKENS */
    double worst;    /* how much likelier the other was */
} agreement;

/* `logits` are the processor's, `next` the device's choice of token `index`. */
static void note(agreement *seen, const float *logits, int64_t vocabulary, int32_t next, int index)
{
    int32_t best = greedy_largest(logits, vocabulary);
    double largest = 0;
    for (int64_t i = 0; i < vocabulary; i++) {
        largest = fmax(largest, fabs((double)logits[i]));
    }
    seen->worst = fmax(seen->worst, ((double)logits[best] - (double)logits[next]) / largest);
    seen->same += best == next;
    seen->first = best != next && index < seen->first ? index : seen->first;
}

/* The processor follows the device's text. */
static agreement follow(test_run *run, const golden_model *near, const golden_model *gpu,
                        const int32_t *ids, int64_t count)
{
    agreement seen = {.first = NEW_TOKENS};
    esp_session *theirs = NULL, *ours = NULL;
    esp_model_info info;
    int32_t next = 0;
    esp_model_get_info(near->model, &info);
    float *logits = calloc((size_t)info.vocabulary, sizeof *logits);
    CHECK_OK(esp_session_create(near->model, CONTEXT, 0, &theirs, error));
    CHECK_OK(esp_session_create(gpu->model, CONTEXT, 0, &ours, error));
    for (int i = 0; theirs != NULL && ours != NULL && i < NEW_TOKENS; i++) {
        const int32_t last = next, *fed = i == 0 ? ids : &last;
        int64_t length = i == 0 ? count : 1;
        CHECK_OK(esp_session_feed(theirs, fed, length, logits, false, error));
        CHECK_OK(esp_session_feed_greedy(ours, fed, length, &next, error));
        if (next < 0 || next >= info.vocabulary) {
            test_fail(run, __FILE__, __LINE__, "token %d of %lld", next,
                      (long long)info.vocabulary);
            break;
        }
        note(&seen, logits, info.vocabulary, next, i);
    }
    esp_session_free(theirs);
    esp_session_free(ours);
    free(logits);
    return seen;
}

static void check_folder(test_run *run, esp_context *context, const char *folder,
                         const esp_tokenizer *tokenizer, esp_dtype dtype)
{
    golden_model near, gpu;
    REQUIRE_OK(golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &near, error));
    REQUIRE_OK(golden_load(context, folder, "cuda:0", ESP_COMPUTE_AUTO, &gpu, error));
    for (int i = 0; i < ESP_COUNT(prompts); i++) {
        int32_t *ids = NULL;
        int64_t count = 0;
        CHECK_OK(esp_tokenizer_encode(tokenizer, prompts[i], strlen(prompts[i]), true, &ids, &count,
                                      error));
        agreement seen = follow(run, &near, &gpu, ids, count);
        if (!(seen.worst <= bound_of(dtype))) {
            test_fail(run, __FILE__, __LINE__,
                      "prompt %d: %d of %d tokens are the likeliest, the first other one is %d, "
                      "worst %.3g of the largest logit, more than %.3g",
                      i, seen.same, NEW_TOKENS, seen.first, seen.worst, bound_of(dtype));
        }
        if (getenv("TEST_SHOW") != NULL) {
            printf("prompt %d: %d of %d the same, first other %d, worst %.2e of %.2e\n", i,
                   seen.same, NEW_TOKENS, seen.first, seen.worst, bound_of(dtype));
        }
        esp_ids_free(tokenizer, ids);
    }
    golden_close(&near);
    golden_close(&gpu);
}

static void greedy_texts(test_run *run)
{
    static const esp_dtype dtypes[] = {ESP_BF16, ESP_F16};
    char model[512], folder[512];
    esp_context *context = test_context(run, 4);
    esp_tokenizer *tokenizer = NULL;
    snprintf(model, sizeof model, "%s/models/prose", test_source_dir());
    if (!golden_has_gpu(context)) {
        test_skip(run, "no GPU");
    } else if (!esp_path_exists(model)) {
        test_skip(run, "%s is not there", model);
    } else {
        REQUIRE_OK(esp_tokenizer_open(context, model, &tokenizer, error));
        for (int i = 0; i < ESP_COUNT(dtypes) * ESP_COUNT(patterns); i++) {
            esp_dtype dtype = dtypes[i / ESP_COUNT(patterns)];
            const char *pattern = patterns[i % ESP_COUNT(patterns)];
            test_sub(run, "%s, %s", esp_dtype_name(dtype), pattern != NULL ? pattern : "dense");
            if (getenv("TEST_SHOW") != NULL) {
                printf("%s, %s\n", esp_dtype_name(dtype), pattern != NULL ? pattern : "dense");
            }
            make_folder(run, context, model, dtype, pattern, folder);
            check_folder(run, context, folder, tokenizer, dtype);
        }
    }
    esp_tokenizer_close(tokenizer);
    test_context_free(run, context);
}

static const test_case cases[] = {{"greedy_texts", greedy_texts}};
TEST_MAIN(cases)
