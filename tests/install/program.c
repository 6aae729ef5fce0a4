/* A user's program in C: the version of header and library agree, and a pattern is read and
 * printed. */
#include <espalier/espalier.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    char expected[32], text[ESP_PATTERN_TEXT_MAX];
    esp_error error;
    esp_context *context;
    esp_pattern pattern;
    snprintf(expected, sizeof expected, "%d.%d.%d", ESP_VERSION_MAJOR, ESP_VERSION_MINOR,
             ESP_VERSION_PATCH);
    if (strcmp(esp_version(), expected) != 0 ||
        esp_context_create(NULL, &context, &error) != ESP_OK) {
        return 1;
    }
    int devices = esp_device_list(context, NULL, 0);
    esp_context_free(context);
    if (esp_pattern_parse("64:2:8", &pattern, &error) != ESP_OK) {
        return 1;
    }
    esp_pattern_print(&pattern, text);
    printf("%s %s %d\n", esp_version(), text, devices);
    return strcmp(text, "64:2:8") == 0 && devices >= 2 ? 0 : 1;
}
