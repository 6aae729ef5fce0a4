/* Libraries of other people, found at run time, so that the program needs none of them. Opened when
 * a plan first asks, because loading one starts its threads. */
#include <dlfcn.h>
#include <pthread.h>

#include "cpu/kernels.h"

struct cpu_state {
    pthread_mutex_t lock;
    bool asked;
    cpu_openblas openblas; /* library NULL: not there */
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
    if (!state->asked) {
        state->asked = true;
        open_openblas(&state->openblas);
    }
    pthread_mutex_unlock(&state->lock);
    return state->openblas.library != NULL ? &state->openblas : NULL;
}
