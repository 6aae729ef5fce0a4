/* CUPTI's activity records of kernels and copies, summed by name. Work is traced when it is given
 * to the GPU kernel by kernel; it runs one kernel after the other then, as in a graph. */
#include <ctype.h>
#include <cuda_runtime_api.h>
#include <cupti.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_trace.h"

#define BUFFER_BYTES ((size_t)4 << 20)

typedef struct cupti {
    void *library;
    CUptiResult (*register_callbacks)(CUpti_BuffersCallbackRequestFunc,
                                      CUpti_BuffersCallbackCompleteFunc);
    CUptiResult (*enable)(CUpti_ActivityKind);
    CUptiResult (*disable)(CUpti_ActivityKind);
    CUptiResult (*flush)(uint32_t);
    CUptiResult (*next)(uint8_t *, size_t, CUpti_Activity **);
} cupti;

/* CUPTI's callbacks carry nothing of the caller's, so what they fill is here. */
static cupti api;
static gpu_trace *filled;

static const CUpti_ActivityKind kinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
                                           CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET};

const char *trace_kind_name(trace_kind kind)
{
    static const char *const names[TRACE_KINDS] = {"sparse_products", "dense_products", "attention",
                                                   "norms",           "others",         "copies"};
    return names[kind];
}

/* ---- names ---- */

typedef struct named_kind {
    const char *part;
    trace_kind kind;
} named_kind;

/* The first whose text is part of a kernel's name decides. Kernels of the dense libraries have many
 * names; all others are this project's and end in "_kernel". */
static trace_kind kind_of(const char *name)
{
    static const named_kind list[] = {
        {"dense_few", TRACE_DENSE},    {"attention", TRACE_ATTENTION}, {"decode", TRACE_ATTENTION},
        {"panel", TRACE_SPARSE},       {"blocks", TRACE_SPARSE},       {"few_kernel", TRACE_SPARSE},
        {"tile_kernel", TRACE_SPARSE}, {"block_kernel", TRACE_SPARSE}, {"norm_kernel", TRACE_NORM},
        {"_kernel", TRACE_OTHER},
    };
    for (int i = 0; i < (int)COUNT(list); i++) {
        if (strstr(name, list[i].part) != NULL) {
            return list[i].kind;
        }
    }
    return TRACE_DENSE;
}

/* The names inside a mangled one (Itanium C++: each after its length), joined by "::"; a name that
 * is not mangled as it is. What lies in no named space or is a template's argument is left out. */
static void plain_name(const char *mangled, char name[TRACE_NAME_MAX])
{
    const char *at = mangled;
    size_t used = 0;
    name[0] = '\0';
    if (strncmp(at, "_Z", 2) != 0) {
        snprintf(name, TRACE_NAME_MAX, "%.*s", TRACE_NAME_MAX - 1, mangled);
        return;
    }
    at += at[2] == 'N' ? 3 : 2;
    at += *at == 'L' ? 1 : 0; /* of this file alone */
    while (isdigit((unsigned char)*at)) {
        char *end;
        size_t length = strtoul(at, &end, 10);
        if (length == 0 || length > strlen(end)) {
            break;
        }
        if (strncmp(end, "_GLOBAL__", 9) != 0 && used + length + 3 < TRACE_NAME_MAX) {
            used += (size_t)snprintf(name + used, TRACE_NAME_MAX - used, "%s%.*s",
                                     used > 0 ? "::" : "", (int)length, end);
        }
        at = end + length;
        at += *at == 'L' && isdigit((unsigned char)at[1]) ? 1 : 0;
    }
}

/* ---- records ---- */

static void add(gpu_trace *trace, const char *name, trace_kind kind, double us)
{
    int i = 0;
    while (i < trace->count && strcmp(trace->rows[i].name, name) != 0) {
        i++;
    }
    if (i == TRACE_MOST_ROWS) {
        i--;
        snprintf(trace->rows[i].name, TRACE_NAME_MAX, "others");
    } else if (i == trace->count) {
        trace->rows[i] = (trace_row){.kind = kind};
        snprintf(trace->rows[i].name, TRACE_NAME_MAX, "%s", name);
        trace->count++;
    }
    trace->rows[i].runs++;
    trace->rows[i].us += us;
    trace->us[kind] += us;
    trace->busy_us += us;
}

static double us_between(uint64_t start, uint64_t end)
{
    return 1e-3 * (double)(end - start);
}

static void add_record(gpu_trace *trace, const CUpti_Activity *record)
{
    char name[TRACE_NAME_MAX];
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
        const CUpti_ActivityKernel10 *kernel = (const void *)record;
        plain_name(kernel->name, name);
        add(trace, name, kind_of(name), us_between(kernel->start, kernel->end));
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
        const CUpti_ActivityMemcpy6 *copy = (const void *)record;
        add(trace,
            copy->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_HTOD   ? "copy to the device"
            : copy->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOH ? "copy to the host"
                                                                : "copy on the device",
            TRACE_COPY, us_between(copy->start, copy->end));
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
        const CUpti_ActivityMemset4 *set = (const void *)record;
        add(trace, "fill", TRACE_COPY, us_between(set->start, set->end));
    }
}

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *bytes, size_t *most_records)
{
    *buffer = aligned_alloc(64, BUFFER_BYTES);
    *bytes = *buffer != NULL ? BUFFER_BYTES : 0;
    *most_records = 0;
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t bytes,
                                 size_t valid)
{
    CUpti_Activity *record = NULL;
    (void)context, (void)stream, (void)bytes;
    while (filled != NULL && buffer != NULL && valid > 0 &&
           api.next(buffer, valid, &record) == CUPTI_SUCCESS) {
        add_record(filled, record);
    }
    free(buffer);
}

/* ---- the library ---- */

/* ISO C has no conversion from data to function pointers; POSIX promises that this one works. */
static bool find(const char *name, void *function)
{
    void *symbol = dlsym(api.library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

/* The records' layout is that of the header's version. */
static bool open_library(char *why, size_t capacity)
{
    static const char *const folders[] = {"", "/usr/local/cuda/lib64/",
                                          "/usr/local/cuda/extras/CUPTI/lib64/"};
    char name[128] = "";
    if (api.library != NULL) {
        return true;
    }
    for (int i = COUNT(folders) - 1; i >= 0 && api.library == NULL; i--) {
        snprintf(name, sizeof name, "%slibcupti.so.%d", folders[i], CUDART_VERSION / 1000);
        api.library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    if (api.library == NULL) {
        snprintf(why, capacity, "%s was not found: it comes with the CUDA toolkit", name);
        return false;
    }
    bool found = find("cuptiActivityRegisterCallbacks", &api.register_callbacks) &&
                 find("cuptiActivityEnable", &api.enable) &&
                 find("cuptiActivityDisable", &api.disable) &&
                 find("cuptiActivityFlushAll", &api.flush) &&
                 find("cuptiActivityGetNextRecord", &api.next) &&
                 api.register_callbacks(give_buffer, take_buffer) == CUPTI_SUCCESS;
    if (!found) {
        snprintf(why, capacity, "%s does not trace here", name);
        dlclose(api.library);
        api = (cupti){NULL};
    }
    return found;
}

static void disable_all(int count)
{
    for (int i = 0; i < count; i++) {
        (void)api.disable(kinds[i]);
    }
}

bool gpu_trace_begin(char *why, size_t capacity)
{
    if (!open_library(why, capacity)) {
        return false;
    }
    (void)cudaDeviceSynchronize();
    for (int i = 0; i < (int)COUNT(kinds); i++) {
        if (api.enable(kinds[i]) != CUPTI_SUCCESS) {
            disable_all(i);
            snprintf(why, capacity, "the driver lets nobody trace here (another profiler?)");
            return false;
        }
    }
    return true;
}

static int longest_first(const void *a, const void *b)
{
    const trace_row *left = a, *right = b;
    return left->us < right->us ? 1 : left->us > right->us ? -1 : strcmp(left->name, right->name);
}

void gpu_trace_end(gpu_trace *trace)
{
    *trace = (gpu_trace){.count = 0};
    filled = trace;
    (void)cudaDeviceSynchronize();
    (void)api.flush(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    disable_all(COUNT(kinds));
    filled = NULL;
    qsort(trace->rows, (size_t)trace->count, sizeof trace->rows[0], longest_first);
}
