/* What a reading belongs to: the machine, and the libraries that took part. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_job.h"

/* Variables by which users steer the libraries; a set one belongs to the reading. */
static const char *const library_variables[] = {
    "OPENBLAS_CORETYPE",  "OPENBLAS_NUM_THREADS", "OPENBLAS_L2_SIZE",
    "OMP_NUM_THREADS",    "OMP_WAIT_POLICY",      "OMP_PROC_BIND",
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA",     "ESPALIER_CPU"};

/* A function of a library that is open already. */
static bool find_loaded(const char *library, const char *name, void *function, void **handle)
{
    *handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    void *symbol = *handle != NULL ? dlsym(*handle, name) : NULL;
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

static void close_loaded(void *handle)
{
    if (handle != NULL) {
        dlclose(handle);
    }
}

/* "" where it is not loaded. */
static void openblas_version(char text[160])
{
    char *(*config)(void) = NULL, *(*core)(void) = NULL;
    void *handle, *again;
    text[0] = '\0';
    if (find_loaded("libopenblas.so.0", "openblas_get_config", &config, &handle)) {
        bool has_core = find_loaded("libopenblas.so.0", "openblas_get_corename", &core, &again);
        snprintf(text, 160, "%s%s%s", config(), has_core ? ", kernels of " : "",
                 has_core ? core() : "");
        close_loaded(again);
    }
    close_loaded(handle);
}

static void onednn_version(char text[160])
{
    static const char *const names[] = {"libdnnl.so.3", "libdnnl.so.2"};
    typedef struct dnnl_numbers { /* as in dnnl_types.h */
        int major, minor, patch;
        const char *hash;
    } dnnl_numbers;
    text[0] = '\0';
    for (int i = 0; i < COUNT(names); i++) {
        const dnnl_numbers *(*version)(void) = NULL;
        void *handle;
        if (find_loaded(names[i], "dnnl_version", &version, &handle)) {
            const dnnl_numbers *numbers = version();
            snprintf(text, 160, "%d.%d.%d", numbers->major, numbers->minor, numbers->patch);
        }
        close_loaded(handle);
    }
}

static esp_device_info device_info(const cli_state *cli)
{
    esp_device_info infos[16] = {0};
    int count = esp_device_list(cli->context, infos, COUNT(infos));
    for (int i = 0; i < count && i < COUNT(infos); i++) {
        if (strcmp(infos[i].name, esp_device_name(cli->device)) == 0) {
            return infos[i];
        }
    }
    return (esp_device_info){.name = "?"};
}

cli_record bench_machine_json(const cli_state *cli)
{
    cli_record machine = record_object(), variables = record_object();
    esp_device_info info = device_info(cli);
    char openblas[160], onednn[160];
    openblas_version(openblas);
    onednn_version(onednn);
    record_text(&machine, "processor", info.description);
    record_int(&machine, "cores", sysconf(_SC_NPROCESSORS_ONLN));
    record_int(&machine, "memory_bytes", (int64_t)info.memory_bytes);
    record_int(&machine, "last_cache_bytes", sysconf(_SC_LEVEL3_CACHE_SIZE));
    record_text(&machine, "openblas", openblas[0] != '\0' ? openblas : NULL);
    record_text(&machine, "onednn", onednn[0] != '\0' ? onednn : NULL);
    for (int i = 0; i < COUNT(library_variables); i++) {
        const char *value = getenv(library_variables[i]);
        if (value != NULL) {
            record_text(&variables, library_variables[i], value);
        }
    }
    record_child(&machine, "variables", variables);
    if (device_is_gpu(cli->device)) {
        record_text(&machine, "identity", esp_device_identity(cli->device));
    }
    return machine;
}

void bench_machine_print(const cli_state *cli)
{
    esp_device_info info = device_info(cli);
    char openblas[160], onednn[160];
    openblas_version(openblas);
    onednn_version(onednn);
    printf("%s\n", info.description);
    if (openblas[0] != '\0' || onednn[0] != '\0') {
        printf("libraries: %s%s%s%s\n", openblas, openblas[0] != '\0' && onednn[0] ? "; " : "",
               onednn[0] != '\0' ? "oneDNN " : "", onednn);
    }
    for (int i = 0; i < COUNT(library_variables); i++) {
        const char *value = getenv(library_variables[i]);
        if (value != NULL) {
            printf("%s=%s is set\n", library_variables[i], value);
        }
    }
}
