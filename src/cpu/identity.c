/* What measured times depend on besides processor and threads: the instruction set as limited, and
 * the libraries that are found, with the kernels that they chose for themselves. */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>

#include "cpu/kernels.h"

/* The head of dnnl_version_t, the same in versions 2 and 3. */
typedef struct dnnl_numbers {
    int major, minor, patch;
} dnnl_numbers;

/* ISO C has no conversion from data to function pointers; POSIX promises that this one works. */
static bool find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

static void add(char *text, size_t capacity, const char *format, ...) ESP_PRINTF(3, 4);
static void add(char *text, size_t capacity, const char *format, ...)
{
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, capacity - used, format, arguments);
    va_end(arguments);
}

void cpu_identify(const esp_device *device, char *text, size_t capacity)
{
    const esp_cpu_features *cpu = &device->context->cpu;
    const cpu_openblas *blas = cpu_openblas_of(device);
    const cpu_onednn *dnnl = cpu_onednn_of(device);
    char *(*config)(void);
    const dnnl_numbers *(*version)(void);
    text[0] = '\0';
    add(text, capacity, "%s%s%s", esp_cpu_level_name(cpu->level), cpu->avx512_bf16 ? "+bf16" : "",
        cpu->avx512_vnni ? "+vnni" : "");
    if (blas == NULL) {
        add(text, capacity, ", no OpenBLAS");
    } else if (find(blas->library, "openblas_get_config", &config)) {
        add(text, capacity, ", %s", config()); /* version, and the core whose kernels it uses */
    } else {
        add(text, capacity, ", OpenBLAS");
    }
    if (dnnl == NULL) {
        add(text, capacity, ", no oneDNN");
    } else if (find(dnnl->library, "dnnl_version", &version)) {
        const dnnl_numbers *numbers = version();
        add(text, capacity, ", oneDNN %d.%d.%d", numbers->major, numbers->minor, numbers->patch);
    } else {
        add(text, capacity, ", oneDNN");
    }
}
