/* Opening and encoding with a context whose n-th allocation fails, for every n: nothing but
 * out-of-memory is reported, and nothing leaks. */
#ifndef TEST_TOKENIZER_MEMORY_H
#define TEST_TOKENIZER_MEMORY_H

#include <stdlib.h>
#include <string.h>

#include <espalier/model.h>

#include "base/base.h"
#include "failing_allocator.h"
#include "test.h"

static esp_status open_and_encode(esp_context *context, const char *folder, const char *text,
                                  esp_error *error)
{
    esp_tokenizer *tokenizer = NULL;
    int32_t *ids = NULL;
    int64_t count;
    ESP_TRY(esp_tokenizer_open(context, folder, &tokenizer, error));
    esp_status status =
        esp_tokenizer_encode(tokenizer, text, strlen(text), true, &ids, &count, error);
    if (status == ESP_OK) {
        esp_ids_free(tokenizer, ids);
    }
    esp_tokenizer_close(tokenizer);
    return status;
}

static inline void check_failing_memory(test_run *run, const char *folder, const char *text)
{
    esp_status status = ESP_FAILED;
    for (long n = 0; status != ESP_OK && n < 4000; n++) {
        failing state = {.left = 1000};
        esp_context_options options = {.threads = 1,
                                       .allocator = {failing_allocate, failing_release, &state}};
        esp_context *context = NULL;
        esp_error problem = {0};
        REQUIRE_OK(esp_context_create(&options, &context, error));
        state.left = n;
        test_sub(run, "%s allocation %ld", strrchr(folder, '/') + 1, n);
        status = open_and_encode(context, folder, text, &problem);
        CHECK(status == ESP_OK || status == ESP_OUT_OF_MEMORY);
        esp_context_free(context);
        CHECK_INT(state.live, 0);
    }
    CHECK_INT(status, ESP_OK);
}

#endif
