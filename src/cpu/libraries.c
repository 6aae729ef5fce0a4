/* Libraries of other people, found at run time, so that the program needs none of them. Opened when
 * a plan first asks, because loading one starts its threads. */
#include <dlfcn.h>
#include <pthread.h>

#include "cpu/kernels.h"

struct cpu_state {
    pthread_mutex_t lock;
    bool openblas_asked, onednn_asked;
    cpu_openblas openblas; /* library NULL: not there */
    cpu_onednn onednn;
};

esp_status cpu_state_open(esp_device *device, esp_error *error)
{
    cpu_state *state = esp_alloc_zero(device->context, sizeof *state);
    if (state == NULL) {
        return esp_fail_memory(error, sizeof *state, "the cpu device");
    }
    pthread_mutex_init(&state->lock, NULL);
    device->state = state;
    return ESP_OK;
}

void cpu_state_close(esp_device *device)
{
    cpu_state *state = device->state;
    if (state->openblas.library != NULL) {
        dlclose(state->openblas.library);
    }
    if (state->onednn.library != NULL) {
        dlclose(state->onednn.library);
    }
    pthread_mutex_destroy(&state->lock);
    esp_release(device->context, state);
}

/* ISO C has no conversion from data to function pointers; POSIX promises that this one works. */
static bool find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

static void open_openblas(cpu_openblas *blas)
{
    void *library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        return;
    }
    if (find(library, "cblas_sgemm", &blas->sgemm) && find(library, "cblas_sgemv", &blas->sgemv) &&
        find(library, "openblas_set_num_threads", &blas->set_threads) &&
        find(library, "openblas_get_num_threads", &blas->get_threads)) {
        blas->library = library;
    } else {
        dlclose(library);
    }
}

const cpu_openblas *cpu_openblas_of(const esp_device *device)
{
    cpu_state *state = device->state;
    pthread_mutex_lock(&state->lock);
    if (!state->openblas_asked) {
        state->openblas_asked = true;
        open_openblas(&state->openblas);
    }
    pthread_mutex_unlock(&state->lock);
    return state->openblas.library != NULL ? &state->openblas : NULL;
}

/* NODELETE: OpenMP's threads outlive the device and must not lose their code. */
static void open_onednn(cpu_onednn *dnnl)
{
    static const char *const names[] = {"libdnnl.so.3", "libdnnl.so.2"};
    for (int i = 0; i < ESP_COUNT(names) && dnnl->library == NULL; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (library == NULL) {
            continue;
        }
        if (find(library, "dnnl_sgemm", &dnnl->sgemm) &&
            find(library, "dnnl_gemm_bf16bf16f32", &dnnl->gemm_bf16) &&
            find(library, "omp_set_num_threads", &dnnl->set_threads) &&
            find(library, "omp_get_max_threads", &dnnl->get_threads)) {
            dnnl->library = library;
        } else {
            dlclose(library);
        }
    }
}

const cpu_onednn *cpu_onednn_of(const esp_device *device)
{
    cpu_state *state = device->state;
    pthread_mutex_lock(&state->lock);
    if (!state->onednn_asked) {
        state->onednn_asked = true;
        open_onednn(&state->onednn);
    }
    pthread_mutex_unlock(&state->lock);
    return state->onednn.library != NULL ? &state->onednn : NULL;
}
