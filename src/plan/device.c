/* Devices: the back ends' lists, one after the other, and opening by name. */
#include <stdarg.h>
#include <stdio.h>

#include "plan/plan.h"

/* All devices a machine can have: ref, cpu and the GPUs. */
#define MAX_DEVICES 32

/* The back end that a device of the list belongs to. */
typedef struct listed_device {
    esp_device_info info;
    const esp_backend *backend;
} listed_device;

static int list_devices(esp_context *context, listed_device devices[MAX_DEVICES])
{
    int count = 0;
    for (int b = 0; esp_backends[b] != NULL; b++) {
        esp_device_info infos[MAX_DEVICES];
        int found = esp_backends[b]->enumerate(context, infos, MAX_DEVICES - count);
        for (int i = 0; i < found && count < MAX_DEVICES; i++) {
            devices[count++] = (listed_device){infos[i], esp_backends[b]};
        }
    }
    return count;
}

int esp_device_list(esp_context *context, esp_device_info *infos, int capacity)
{
    listed_device devices[MAX_DEVICES];
    int count = list_devices(context, devices);
    for (int i = 0; i < count && i < capacity; i++) {
        infos[i] = devices[i].info;
    }
    return count;
}

static esp_status unknown_device(const char *name, const listed_device *devices, int count,
                                 esp_error *error)
{
    char known[512];
    size_t used = 0;
    known[0] = '\0';
    for (int i = 0; i < count && used < sizeof known; i++) {
        if (devices[i].info.usable) {
            used += (size_t)snprintf(known + used, sizeof known - used, "%s%s",
                                     used > 0 ? ", " : "", devices[i].info.name);
        }
    }
    return esp_fail(error, ESP_BAD_ARGUMENT, "device.unknown",
                    "device '%.64s' is not known; this machine has %s", name, known);
}

static esp_status open_listed(esp_context *context, const listed_device *listed,
                              esp_device **device, esp_error *error)
{
    esp_device *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a device");
    }
    made->context = context;
    made->backend = listed->backend;
    memcpy(made->name, listed->info.name, sizeof made->name);
    esp_status status =
        made->backend->open != NULL ? made->backend->open(made, error) : (esp_status)ESP_OK;
    if (status != ESP_OK) {
        esp_release(context, made);
        return status;
    }
    *device = made;
    return ESP_OK;
}

/* A back end's bare name is its first device, which is the first to be asked; where none is there,
 * one entry stands for all numbers. */
static bool answers_to(const listed_device *listed, const char *wanted)
{
    const esp_device_info *info = &listed->info;
    const char *own = listed->backend->name;
    size_t length = strlen(own);
    bool for_all = !info->usable && strcmp(info->name, own) == 0;
    return strcmp(info->name, wanted) == 0 || strcmp(own, wanted) == 0 ||
           (for_all && strncmp(own, wanted, length) == 0 && wanted[length] == ':');
}

static esp_status refuse(const listed_device *listed, const char *wanted, esp_error *error)
{
    const esp_backend *backend = listed->backend;
    const char *code =
        backend->unusable_code != NULL ? backend->unusable_code(&listed->info) : "device.unusable";
    return esp_fail(error, ESP_UNSUPPORTED, code, "device '%.64s' (%s) cannot be used: %s", wanted,
                    listed->info.description, listed->info.why_not);
}

esp_status esp_device_open(esp_context *context, const char *name, esp_device **device,
                           esp_error *error)
{
    const char *wanted = name != NULL ? name : "cpu";
    listed_device devices[MAX_DEVICES];
    int count = list_devices(context, devices);
    for (int i = 0; i < count; i++) {
        if (answers_to(&devices[i], wanted)) {
            return devices[i].info.usable ? open_listed(context, &devices[i], device, error)
                                          : refuse(&devices[i], wanted, error);
        }
    }
    return unknown_device(wanted, devices, count, error);
}

void esp_device_close(esp_device *device)
{
    if (device == NULL) {
        return;
    }
    if (device->backend->close != NULL) {
        device->backend->close(device);
    }
    esp_release(device->context, device);
}

const char *esp_device_name(const esp_device *device)
{
    return device->name;
}

void *esp_device_alloc(esp_device *device, size_t bytes)
{
    return device->backend->alloc(device, bytes);
}

void esp_device_release(esp_device *device, void *memory)
{
    device->backend->release(device, memory);
}

esp_status esp_device_upload(esp_device *device, void *to, const void *from, size_t bytes,
                             esp_error *error)
{
    if (device->backend->upload != NULL) {
        return device->backend->upload(device, to, from, bytes, error);
    }
    memcpy(to, from, bytes);
    return ESP_OK;
}

esp_status esp_device_download(esp_device *device, void *to, const void *from, size_t bytes,
                               esp_error *error)
{
    if (device->backend->download != NULL) {
        return device->backend->download(device, to, from, bytes, error);
    }
    memcpy(to, from, bytes);
    return ESP_OK;
}

esp_status esp_device_wait(esp_device *device, esp_error *error)
{
    return device->backend->wait != NULL ? device->backend->wait(device, error) : ESP_OK;
}

esp_status esp_device_fill(esp_device *device, void *memory, int byte, size_t bytes,
                           esp_error *error)
{
    if (device->backend->fill != NULL) {
        return device->backend->fill(device, memory, byte, bytes, error);
    }
    memset(memory, byte, bytes);
    return ESP_OK;
}

/* ---- identity ---- */

/* No '|' (it separates), nothing that does not print. */
static void add_word(char *text, size_t capacity, const char *format, ...) ESP_PRINTF(3, 4);
static void add_word(char *text, size_t capacity, const char *format, ...)
{
    size_t used = strlen(text);
    va_list arguments;
    if (used + 4 >= capacity) {
        return;
    }
    if (used > 0) {
        memcpy(text + used, " | ", 4);
        used += 3;
    }
    va_start(arguments, format);
    vsnprintf(text + used, capacity - used, format, arguments);
    va_end(arguments);
    for (char *at = text + used; *at != '\0'; at++) {
        *at = *at == '|' || *at < 0x20 || *at >= 0x7f ? '?' : *at;
    }
}

static void describe(esp_device *device, char text[ESP_DEVICE_IDENTITY_MAX])
{
    listed_device devices[MAX_DEVICES];
    char more[320] = "";
    int count = list_devices(device->context, devices);
    text[0] = '\0';
    for (int i = 0; i < count; i++) {
        const esp_device_info *info = &devices[i].info;
        if (strcmp(info->name, device->name) == 0) {
            /* without its number: equal GPUs of one machine share their times */
            add_word(text, ESP_DEVICE_IDENTITY_MAX, "%.*s", (int)strcspn(info->name, ":"),
                     info->name);
            add_word(text, ESP_DEVICE_IDENTITY_MAX, "%s", info->description);
            add_word(text, ESP_DEVICE_IDENTITY_MAX, "threads %d", info->threads);
            add_word(text, ESP_DEVICE_IDENTITY_MAX, "memory %.0f GiB",
                     (double)info->memory_bytes * 0x1p-30);
        }
    }
    if (device->backend->identify != NULL) {
        device->backend->identify(device, more, sizeof more);
        add_word(text, ESP_DEVICE_IDENTITY_MAX, "%s", more);
    }
    add_word(text, ESP_DEVICE_IDENTITY_MAX, "espalier %s", esp_version());
}

const char *esp_device_identity(esp_device *device)
{
    pthread_mutex_t *lock = &device->context->tuning.lock;
    pthread_mutex_lock(lock);
    if (device->identity[0] == '\0') {
        describe(device, device->identity);
    }
    pthread_mutex_unlock(lock);
    return device->identity;
}
