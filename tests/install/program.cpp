// A user's program in C++: handles in a unique_ptr, a tokenizer and JSON reader behind the call.
#include <espalier/espalier.h>

#include <iostream>
#include <memory>
#include <string>

int main()
{
    esp_error error{};
    esp_context *raw = nullptr;
    if (esp_context_create(nullptr, &raw, &error) != ESP_OK) {
        return 1;
    }
    std::unique_ptr<esp_context, decltype(&esp_context_free)> context(raw, esp_context_free);
    esp_tokenizer *tokenizer = nullptr;
    esp_status status = esp_tokenizer_open(context.get(), "/nonexistent", &tokenizer, &error);
    std::cout << esp_version() << ' ' << error.code << '\n';
    return status != ESP_OK && tokenizer == nullptr && !std::string(error.code).empty() ? 0 : 1;
}
