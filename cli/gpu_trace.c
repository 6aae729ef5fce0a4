/* CUPTI's activity records of kernels and copies, summed by name. A kernel that is launched while
 * the one before it still works, and waits for it, is counted from that one's end. */
#include <ctype.h>
#include <cuda_runtime_api.h>
#include <cupti.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_symbol.h"
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
        {"moments", TRACE_NORM},       {"sum_kernel", TRACE_NORM},     {"_kernel", TRACE_OTHER},
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

typedef struct activity {
    char name[TRACE_NAME_MAX];
    trace_kind kind;
    uint64_t start, end; /* ns */
} activity;

typedef struct activity_list {
    activity *all;
    size_t count, room;
    bool short_of_memory;
} activity_list;

static activity_list seen;

static void note(const char *name, trace_kind kind, uint64_t start, uint64_t end)
{
    if (seen.count == seen.room) {
        size_t room = seen.room > 0 ? 2 * seen.room : 1024;
        activity *grown = realloc(seen.all, room * sizeof *grown);
        if (grown == NULL) {
            seen.short_of_memory = true;
            return;
        }
        seen.all = grown;
        seen.room = room;
    }
    activity *made = &seen.all[seen.count++];
    *made = (activity){.kind = kind, .start = start, .end = end};
    snprintf(made->name, sizeof made->name, "%s", name);
}

static void note_record(const CUpti_Activity *record)
{
    char name[TRACE_NAME_MAX];
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
        const CUpti_ActivityKernel10 *kernel = (const void *)record;
        plain_name(kernel->name, name);
        note(name, kind_of(name), kernel->start, kernel->end);
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
        const CUpti_ActivityMemcpy6 *copy = (const void *)record;
        note(copy->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_HTOD   ? "copy to the device"
             : copy->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOH ? "copy to the host"
                                                                 : "copy on the device",
             TRACE_COPY, copy->start, copy->end);
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
        const CUpti_ActivityMemset4 *set = (const void *)record;
        note("fill", TRACE_COPY, set->start, set->end);
    }
}

/* ---- sums ---- */

static int first_ended(const void *a, const void *b)
{
    const activity *left = a, *right = b;
    return left->end < right->end ? -1 : left->end > right->end;
}

static int longest_first(const void *a, const void *b)
{
    const trace_row *left = a, *right = b;
    return left->us < right->us ? 1 : left->us > right->us ? -1 : strcmp(left->name, right->name);
}

static void add(gpu_trace *trace, const activity *what, double us)
{
    int i = 0;
    while (i < trace->count && strcmp(trace->rows[i].name, what->name) != 0) {
        i++;
    }
    if (i == TRACE_MOST_ROWS) {
        i--;
        snprintf(trace->rows[i].name, TRACE_NAME_MAX, "others");
    } else if (i == trace->count) {
        trace->rows[i] = (trace_row){.kind = what->kind};
        snprintf(trace->rows[i].name, TRACE_NAME_MAX, "%s", what->name);
        trace->count++;
    }
    trace->rows[i].runs++;
    trace->rows[i].us += us;
    trace->us[what->kind] += us;
    trace->busy_us += us;
}

static void sum_up(gpu_trace *trace)
{
    uint64_t last_end = 0;
    qsort(seen.all, seen.count, sizeof *seen.all, first_ended);
    for (size_t i = 0; i < seen.count; i++) {
        const activity *one = &seen.all[i];
        uint64_t start = one->start > last_end ? one->start : last_end;
        add(trace, one, 1e-3 * (double)(one->end - start));
        last_end = one->end;
    }
    qsort(trace->rows, (size_t)trace->count, sizeof trace->rows[0], longest_first);
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
    while (buffer != NULL && valid > 0 && api.next(buffer, valid, &record) == CUPTI_SUCCESS) {
        note_record(record);
    }
    free(buffer);
}

/* ---- the library ---- */

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
    bool found =
        gpu_symbol(api.library, "cuptiActivityRegisterCallbacks", &api.register_callbacks) &&
        gpu_symbol(api.library, "cuptiActivityEnable", &api.enable) &&
        gpu_symbol(api.library, "cuptiActivityDisable", &api.disable) &&
        gpu_symbol(api.library, "cuptiActivityFlushAll", &api.flush) &&
        gpu_symbol(api.library, "cuptiActivityGetNextRecord", &api.next) &&
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

void gpu_trace_end(gpu_trace *trace)
{
    *trace = (gpu_trace){.count = 0};
    (void)cudaDeviceSynchronize();
    (void)api.flush(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    disable_all(COUNT(kinds));
    if (seen.count > 0 && !seen.short_of_memory) {
        sum_up(trace);
    }
    free(seen.all);
    seen = (activity_list){NULL};
}
