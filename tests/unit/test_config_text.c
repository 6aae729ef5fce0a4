/* One number of a config.json becomes another, and every other byte stays. */
#include "io/config_text.h"
#include "test.h"

static void numbers(test_run *run)
{
    static const struct {
        const char *before, *section, *key, *after;
    } wanted[] = {
        {"{\"a\": 1, \"b\": 1e-05}", NULL, "a", "{\"a\": 7, \"b\": 1e-05}"},
        {"{ \"x\": {\"a\": 1}, \"a\" : 12 }\n", NULL, "a", "{ \"x\": {\"a\": 1}, \"a\" : 7 }\n"},
        {"{\"a\": 3, \"x\": {\"b\": [1, {\"a\": 2}], \"a\":null}}", "x", "a",
         "{\"a\": 3, \"x\": {\"b\": [1, {\"a\": 2}], \"a\":7}}"},
        {"{\"text\": \"\\\"a\\\": 5\", \"a\": 1}", NULL, "a",
         "{\"text\": \"\\\"a\\\": 5\", \"a\": 7}"},
        {"{\"b\": 2}", NULL, "a", "{\n  \"a\": 7,\"b\": 2}"},
        {"{}", NULL, "a", "{\n  \"a\": 7}"},
        {" {\"x\": {}}", "x", "a", " {\"x\": {\n  \"a\": 7}}"},
    };
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(wanted); i++) {
        char *after = NULL;
        test_sub(run, "%s", wanted[i].before);
        CHECK_OK(esp_config_set(context, wanted[i].before, wanted[i].section, wanted[i].key, "7",
                                &after, error));
        if (after == NULL || strcmp(after, wanted[i].after) != 0) {
            test_fail(run, __FILE__, __LINE__, "became %s", after);
        }
        esp_release(context, after);
    }
    char *after = NULL;
    CHECK_OK(esp_config_set(context, "{\"a\": true}", NULL, "a", "false", &after, error));
    CHECK(after != NULL && strcmp(after, "{\"a\": false}") == 0);
    esp_release(context, after);
    test_context_free(run, context);
}

static void refusals(test_run *run)
{
    static const struct {
        const char *text, *section;
    } bad[] = {{"[1]", NULL},
               {"{\"x\": 3}", "x"},
               {"{\"y\": {}}", "x"},
               {"{\"\\u0061\": 1}", NULL}}; /* the key, spelled by an escape: found twice */
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(bad); i++) {
        char *after = NULL;
        test_sub(run, "%s", bad[i].text);
        CHECK(esp_config_set(context, bad[i].text, bad[i].section, "a", "7", &after, NULL) ==
              ESP_BAD_FILE);
        CHECK(after == NULL);
    }
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"numbers", numbers},
    {"refusals", refusals},
};

TEST_MAIN(cases)
