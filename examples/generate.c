/* Loads a model folder, dense or compressed, and continues a text: generate MODEL TEXT [TOKENS]. */
#include <espalier/espalier.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(esp_status status, const esp_error *error)
{
    if (status != ESP_OK) {
        fprintf(stderr, "%s [%s]\n", error->message, error->code);
        exit(1);
    }
}

/* A token may be part of a character: bytes go out as they are. */
static bool print_token(void *user, int32_t id)
{
    size_t length = 0;
    const char *bytes = esp_tokenizer_token(user, id, false, &length);
    return bytes == NULL || fwrite(bytes, 1, length, stdout) == length;
}

static void run(esp_model *model, esp_tokenizer *tokenizer, const char *text, int64_t limit)
{
    esp_error error;
    esp_model_info info;
    int32_t *prompt;
    int64_t count;
    esp_session *session;
    esp_generation result = {0};
    esp_model_get_info(model, &info);
    check(esp_tokenizer_encode(tokenizer, text, strlen(text), true, &prompt, &count, &error),
          &error);
    check(esp_session_create(model, info.context, 0, &session, &error), &error);
    fputs(text, stdout);
    check(
        esp_generate(session, prompt, count, limit, NULL, print_token, tokenizer, &result, &error),
        &error);
    printf("\n");
    fprintf(stderr, "%lld tokens in %.2f s\n", (long long)result.new_tokens,
            result.prefill_seconds + result.decode_seconds);
    esp_session_free(session);
    esp_ids_free(tokenizer, prompt);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL TEXT [TOKENS]\n", argv[0]);
        return 2;
    }
    esp_error error;
    esp_context *context;
    esp_device *device;
    esp_checkpoint *checkpoint;
    esp_tokenizer *tokenizer;
    esp_model *model;
    check(esp_context_create(NULL, &context, &error), &error);
    check(esp_device_open(context, NULL, &device, &error), &error);
    check(esp_checkpoint_open(context, argv[1], &checkpoint, &error), &error);
    check(esp_tokenizer_open(context, argv[1], &tokenizer, &error), &error);
    check(esp_model_load(device, checkpoint, NULL, &model, &error), &error);
    esp_checkpoint_close(checkpoint); /* the weights are on the device now */
    run(model, tokenizer, argv[2], argc > 3 ? strtoll(argv[3], NULL, 10) : 32);
    esp_model_free(model);
    esp_tokenizer_close(tokenizer);
    esp_device_close(device);
    esp_context_free(context);
    return 0;
}
