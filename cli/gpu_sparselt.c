/* cuSPARSELt's 2:4 products, in a process of their own: its search tries kernels that have been
 * seen to crash, and a crash takes the whole process's GPU with it.
 *
 * The library is opened at run time and no header of it is needed: its opaque structures are given
 * more room than any version takes, and the one enumeration whose numbers moved between versions
 * (the compute type) is tried until a plan is made; a wrong one shows in the check of the result.
 * A request is a line on stdin, the answer a line on stdout (gpu_child.c). */
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_job.h"
#include "gpu.h"
#include "gpu_symbol.h"

#define LINE 512
#define COPIES 3 /* of X and Y */
#define MOST_PRODUCTS 8
#define SCRATCH_LIMIT ((size_t)1 << 31)

/* cuSPARSELt's numbers, equal in versions 0.4 to 0.8 unless said otherwise. */
#define ROW_ORDER 2
#define COLUMN_ORDER 1
#define AS_IT_IS 0
#define TURNED 1
#define TYPE_F16 2
#define TYPE_BF16 14
#define TYPE_F32 0
#define HALF_SPARSE 0
#define DEFAULT_ALGORITHM 0
static const int compute_types[] = {2, 1, 0}; /* f32 sums since 0.5.2; before, others */

/* Handles, descriptors, selections and plans: 512 bytes in 0.8, 11264 in 0.4. */
typedef struct opaque {
    _Alignas(16) char bytes[16384];
} opaque;

typedef struct sparselt {
    void *library;
    int version[3];
    opaque handle;
    int (*init)(opaque *);
    int (*property)(int, int *);
    int (*dense)(const opaque *, opaque *, int64_t, int64_t, int64_t, uint32_t, int, int);
    int (*structured)(const opaque *, opaque *, int64_t, int64_t, int64_t, uint32_t, int, int, int);
    int (*matrix_destroy)(const opaque *);
    int (*product)(const opaque *, opaque *, int, int, const opaque *, const opaque *,
                   const opaque *, const opaque *, int);
    int (*selection)(const opaque *, opaque *, const opaque *, int);
    int (*selection_destroy)(const opaque *); /* since 0.8; NULL: not there */
    int (*plan)(const opaque *, opaque *, const opaque *, const opaque *);
    int (*plan_destroy)(const opaque *);
    int (*workspace)(const opaque *, const opaque *, size_t *);
    int (*compressed_size)(const opaque *, const opaque *, size_t *, size_t *);
    int (*compress)(const opaque *, const opaque *, const void *, void *, void *, void *);
    int (*search)(const opaque *, opaque *, const void *, const void *, const void *, const void *,
                  const void *, void *, void *, void **, int32_t);
    int (*run)(const opaque *, const opaque *, const void *, const void *, const void *,
               const void *, const void *, void *, void *, void **, int32_t);
} sparselt;

/* One product as cuSPARSELt has it: D = A B, A the weight [out][in] by rows, B [in][tokens]. */
typedef struct product {
    sparselt *lt;
    esp_device *device;
    esp_matmul_problem problem;
    esp_dtype out_type;
    bool by_token;
    opaque a, b, d, description, selection, plan;
    bool has_a, has_b, has_d, has_selection, has_plan;
    char *w, *x; /* host memory */
    void *device_x[COPIES], *device_y[COPIES], *scratch;
    void **weights;
    int weight_count, next;
    recorded runs;
} product;

/* ---- the library ---- */

/* Where Python keeps the wheel that PyTorch brings, "" when there is none. */
static void ask_python(char path[LINE])
{
    FILE *pipe = popen("python3 -c 'import nvidia.cusparselt as m; print(list(m.__path__)[0])' "
                       "2>/dev/null",
                       "r");
    path[0] = '\0';
    if (pipe != NULL && fgets(path, LINE, pipe) != NULL) {
        path[strcspn(path, "\n")] = '\0';
    }
    if (pipe != NULL) {
        pclose(pipe);
    }
}

static void *open_library(void)
{
    const char *named = getenv("ESPALIER_CUSPARSELT");
    char folder[LINE], path[LINE + 64];
    if (named != NULL) {
        return dlopen(named, RTLD_NOW | RTLD_LOCAL);
    }
    void *library = dlopen("libcusparseLt.so.0", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        ask_python(folder);
        snprintf(path, sizeof path, "%s/lib/libcusparseLt.so.0", folder);
        library = folder[0] != '\0' ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    }
    return library;
}

static bool find_all(sparselt *lt)
{
    void *library = lt->library;
    (void)gpu_symbol(library, "cusparseLtMatmulAlgSelectionDestroy", &lt->selection_destroy);
    return gpu_symbol(library, "cusparseLtInit", &lt->init) &&
           gpu_symbol(library, "cusparseLtGetProperty", &lt->property) &&
           gpu_symbol(library, "cusparseLtDenseDescriptorInit", &lt->dense) &&
           gpu_symbol(library, "cusparseLtStructuredDescriptorInit", &lt->structured) &&
           gpu_symbol(library, "cusparseLtMatDescriptorDestroy", &lt->matrix_destroy) &&
           gpu_symbol(library, "cusparseLtMatmulDescriptorInit", &lt->product) &&
           gpu_symbol(library, "cusparseLtMatmulAlgSelectionInit", &lt->selection) &&
           gpu_symbol(library, "cusparseLtMatmulPlanInit", &lt->plan) &&
           gpu_symbol(library, "cusparseLtMatmulPlanDestroy", &lt->plan_destroy) &&
           gpu_symbol(library, "cusparseLtMatmulGetWorkspace", &lt->workspace) &&
           gpu_symbol(library, "cusparseLtSpMMACompressedSize", &lt->compressed_size) &&
           gpu_symbol(library, "cusparseLtSpMMACompress", &lt->compress) &&
           gpu_symbol(library, "cusparseLtMatmulSearch", &lt->search) &&
           gpu_symbol(library, "cusparseLtMatmul", &lt->run);
}

/* NULL, or why there is none. Versions before 0.5 have other arguments. */
static const char *library_start(sparselt *lt)
{
    lt->library = open_library();
    if (lt->library == NULL) {
        return getenv("ESPALIER_CUSPARSELT") != NULL
                   ? "cuSPARSELt not found where ESPALIER_CUSPARSELT points"
                   : "cuSPARSELt not found";
    }
    if (!find_all(lt)) {
        return "cuSPARSELt lacks a function";
    }
    for (int i = 0; i < 3; i++) {
        (void)lt->property(i, &lt->version[i]);
    }
    if (lt->version[0] == 0 && lt->version[1] < 5) {
        return "cuSPARSELt is older than 0.5";
    }
    return lt->init(&lt->handle) == 0 ? NULL : "cuSPARSELt does not start on this GPU";
}

/* ---- operands ---- */

static size_t width_of(esp_dtype dtype)
{
    return esp_dtype_bits(dtype) / 8;
}

/* Of each four of a row two, at random, become zero. */
static void prune(char *w, int64_t groups, size_t width)
{
    static const char dropped[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
    uint64_t seed = 5;
    for (int64_t g = 0; g < groups; g++) {
        const char *two = dropped[bench_random(&seed) % 6];
        for (int i = 0; i < 2; i++) {
            memset(w + ((size_t)(4 * g) + (size_t)two[i]) * width, 0, width);
        }
    }
}

static esp_status random_values(int64_t rows, int64_t columns, esp_dtype type, float scale,
                                uint64_t seed, char **values, esp_error *error)
{
    size_t bytes;
    void *made = NULL;
    TRY(bench_random_matrix(rows, columns, type, scale, seed, &made, &bytes, error));
    *values = made;
    return ESP_OK;
}

static esp_status make_operands(product *p, esp_error *error)
{
    const esp_matmul_problem *problem = &p->problem;
    int64_t out = problem->out_features, in = problem->in_features, tokens = problem->tokens;
    size_t x_bytes = (size_t)(in * tokens) * width_of(problem->act_type);
    size_t y_bytes = (size_t)(out * tokens) * width_of(p->out_type);
    TRY(random_values(out, in, problem->weight_type, 1.0f / sqrtf((float)in), 16, &p->w, error));
    TRY(random_values(in, tokens, problem->act_type, 1, 17, &p->x, error));
    prune(p->w, out * in / 4, width_of(problem->weight_type));
    for (int i = 0; i < COPIES; i++) {
        p->device_x[i] = esp_device_alloc(p->device, x_bytes);
        p->device_y[i] = esp_device_alloc(p->device, y_bytes);
        if (p->device_x[i] == NULL || p->device_y[i] == NULL) {
            return cli_fail_memory(error, "operands on the GPU");
        }
        TRY(esp_device_upload(p->device, p->device_x[i], p->x, x_bytes, error));
    }
    return ESP_OK;
}

/* ---- descriptions and plans ---- */

static int type_of(esp_dtype dtype)
{
    return dtype == ESP_F16 ? TYPE_F16 : dtype == ESP_BF16 ? TYPE_BF16 : TYPE_F32;
}

static bool describe_matrices(product *p)
{
    const sparselt *lt = p->lt;
    const esp_matmul_problem *problem = &p->problem;
    int64_t out = problem->out_features, in = problem->in_features, tokens = problem->tokens;
    int type = type_of(problem->weight_type);
    int64_t b_rows = p->by_token ? tokens : in, b_columns = p->by_token ? in : tokens;
    p->has_a =
        lt->structured(&lt->handle, &p->a, out, in, in, 16, type, ROW_ORDER, HALF_SPARSE) == 0;
    p->has_b =
        lt->dense(&lt->handle, &p->b, b_rows, b_columns, b_columns, 16, type, ROW_ORDER) == 0;
    p->has_d = lt->dense(&lt->handle, &p->d, out, tokens, p->by_token ? out : tokens, 16,
                         type_of(p->out_type), p->by_token ? COLUMN_ORDER : ROW_ORDER) == 0;
    return p->has_a && p->has_b && p->has_d;
}

static void drop_plan(product *p)
{
    if (p->has_plan) {
        p->lt->plan_destroy(&p->plan);
    }
    if (p->has_selection && p->lt->selection_destroy != NULL) {
        p->lt->selection_destroy(&p->selection);
    }
    p->has_plan = p->has_selection = false;
}

static bool make_plan(product *p, int compute)
{
    const sparselt *lt = p->lt;
    if (lt->product(&lt->handle, &p->description, AS_IT_IS, p->by_token ? TURNED : AS_IT_IS, &p->a,
                    &p->b, &p->d, &p->d, compute) != 0) {
        return false;
    }
    p->has_selection =
        lt->selection(&lt->handle, &p->selection, &p->description, DEFAULT_ALGORITHM) == 0;
    p->has_plan =
        p->has_selection && lt->plan(&lt->handle, &p->plan, &p->description, &p->selection) == 0;
    if (!p->has_plan) {
        drop_plan(p);
    }
    return p->has_plan;
}

static esp_status plan(product *p, esp_error *error)
{
    bool made = describe_matrices(p);
    for (int i = 0; made && i < COUNT(compute_types); i++) {
        if (make_plan(p, compute_types[i])) {
            return ESP_OK;
        }
    }
    return cli_fail(error, ESP_UNSUPPORTED, "bench.cusparselt",
                    "cuSPARSELt %d.%d.%d does not take this product", p->lt->version[0],
                    p->lt->version[1], p->lt->version[2]);
}

/* ---- running ---- */

static int run_one(product *p, void *stream)
{
    const float one = 1, zero = 0;
    void *y = p->device_y[p->next % COPIES], *streams[] = {stream};
    const void *w = p->weights[p->next % p->weight_count], *x = p->device_x[p->next % COPIES];
    p->next++;
    return p->lt->run(&p->lt->handle, &p->plan, &one, w, x, &zero, y, y, p->scratch, streams, 1);
}

/* An esp_work_fn. */
static esp_status run_all(void *user, void *stream, esp_error *error)
{
    product *p = user;
    for (int i = 0; i < p->runs.runs; i++) {
        int status = run_one(p, stream);
        if (status != 0) {
            return cli_fail(error, ESP_FAILED, "bench.cusparselt",
                            "cuSPARSELt's product failed with status %d", status);
        }
    }
    return ESP_OK;
}

static esp_status compress(product *p, size_t rotate_bytes, esp_error *error)
{
    const sparselt *lt = p->lt;
    const esp_matmul_problem *problem = &p->problem;
    size_t dense_bytes = (size_t)problem->out_features * (size_t)problem->in_features *
                         width_of(problem->weight_type);
    size_t bytes = 0, buffer_bytes = 0;
    if (lt->compressed_size(&lt->handle, &p->plan, &bytes, &buffer_bytes) != 0 || bytes == 0) {
        return cli_fail(error, ESP_FAILED, "bench.cusparselt", "cuSPARSELt does not compress");
    }
    int wanted = (int)(rotate_bytes / bytes) + 1;
    void *dense = esp_device_alloc(p->device, dense_bytes);
    void *buffer = esp_device_alloc(p->device, buffer_bytes + 16);
    p->weights = calloc((size_t)wanted, sizeof(void *));
    esp_status status = dense != NULL && buffer != NULL && p->weights != NULL
                            ? esp_device_upload(p->device, dense, p->w, dense_bytes, error)
                            : cli_fail_memory(error, "compressed weights");
    while (status == ESP_OK && p->weight_count < wanted) {
        void *copy = esp_device_alloc(p->device, bytes);
        if (copy == NULL) {
            status = cli_fail_memory(error, "compressed weights");
            break;
        }
        p->weights[p->weight_count++] = copy;
        if (lt->compress(&lt->handle, &p->plan, dense, copy, buffer, NULL) != 0) {
            status =
                cli_fail(error, ESP_FAILED, "bench.cusparselt", "cuSPARSELt does not compress");
        }
    }
    status = status == ESP_OK ? esp_device_wait(p->device, error) : status;
    esp_device_release(p->device, dense);
    esp_device_release(p->device, buffer);
    return status;
}

/* Its search leaves its best algorithm in the plan. */
static esp_status search(product *p, esp_error *error)
{
    const float one = 1, zero = 0;
    void *streams[] = {NULL};
    int status = p->lt->search(&p->lt->handle, &p->plan, &one, p->weights[0], p->device_x[0], &zero,
                               p->device_y[0], p->device_y[0], NULL, streams, 1);
    if (status != 0) {
        return cli_fail(error, ESP_FAILED, "bench.cusparselt",
                        "cuSPARSELt's search failed with status %d", status);
    }
    return esp_device_wait(p->device, error);
}

static esp_status make_scratch(product *p, esp_error *error)
{
    size_t bytes = 0;
    if (p->lt->workspace(&p->lt->handle, &p->plan, &bytes) != 0 || bytes > SCRATCH_LIMIT) {
        return cli_fail(error, ESP_FAILED, "bench.cusparselt", "cuSPARSELt names no workspace");
    }
    p->scratch = bytes > 0 ? esp_device_alloc(p->device, bytes) : NULL;
    return bytes == 0 || p->scratch != NULL ? ESP_OK : cli_fail_memory(error, "a workspace");
}

static esp_status check(product *p, esp_error *error)
{
    const esp_matmul_problem *problem = &p->problem;
    size_t bytes = (size_t)problem->out_features * (size_t)problem->tokens * width_of(p->out_type);
    char *y = malloc(bytes);
    if (y == NULL) {
        return cli_fail_memory(error, "a result");
    }
    memset(y, 0xff, bytes); /* NaN: what is not written shows */
    p->next = 0;
    p->runs.runs = 1;
    esp_status status = esp_device_upload(p->device, p->device_y[0], y, bytes, error);
    status = status == ESP_OK ? run_all(p, NULL, error) : status;
    status = status == ESP_OK ? esp_device_wait(p->device, error) : status;
    status =
        status == ESP_OK ? esp_device_download(p->device, y, p->device_y[0], bytes, error) : status;
    double off =
        status == ESP_OK ? gpu_sample_error(problem, p->by_token, p->w, p->x, y, p->out_type) : 0;
    free(y);
    return status == ESP_OK && !(off <= GPU_SAMPLE_LIMIT)
               ? cli_fail(error, ESP_CHECK_FAILED, "bench.wrong_result",
                          "cuSPARSELt differs from the exact product by %.3g of the largest value",
                          off)
               : status;
}

static void product_free(product *p)
{
    recorded_free(&p->runs);
    drop_plan(p);
    const opaque *matrices[] = {p->has_a ? &p->a : NULL, p->has_b ? &p->b : NULL,
                                p->has_d ? &p->d : NULL};
    for (int i = 0; i < COUNT(matrices); i++) {
        if (matrices[i] != NULL) {
            p->lt->matrix_destroy(matrices[i]);
        }
    }
    for (int i = 0; i < p->weight_count; i++) {
        esp_device_release(p->device, p->weights[i]);
    }
    for (int i = 0; i < COPIES; i++) {
        esp_device_release(p->device, p->device_x[i]);
        esp_device_release(p->device, p->device_y[i]);
    }
    esp_device_release(p->device, p->scratch);
    free(p->weights);
    free(p->w);
    free(p->x);
    free(p);
}

static esp_status prepare(product *p, bool with_search, size_t rotate_bytes, int runs,
                          esp_error *error)
{
    TRY(make_operands(p, error));
    TRY(plan(p, error));
    TRY(compress(p, rotate_bytes, error));
    if (with_search) {
        TRY(search(p, error));
    }
    TRY(make_scratch(p, error));
    TRY(check(p, error));
    int least = p->weight_count > COPIES ? p->weight_count : COPIES;
    p->runs = (recorded){.runs = runs > least ? runs : least};
    return esp_record(p->device, run_all, p, &p->runs.recording, error);
}

/* ---- requests ---- */

typedef struct server {
    esp_context *context;
    esp_device *device;
    sparselt *lt;
    const char *why_not; /* NULL: the library is there */
    product *products[MOST_PRODUCTS];
    int count;
} server;

/* NULL, or why its kernels do not take the product. */
static const char *why_not(const esp_matmul_problem *problem)
{
    if (problem->weight_type == ESP_F32 || problem->act_type != problem->weight_type) {
        return "cuSPARSELt has 2:4 of f16 and bf16 only, its f32 is TF32 and 1:2";
    }
    bool fits = problem->out_features % 16 == 0 && problem->in_features % 16 == 0 &&
                problem->tokens % 8 == 0;
    return fits ? NULL : "cuSPARSELt takes rows and columns in multiples of 16 and tokens of 8";
}

static esp_status make(server *all, const char *line, esp_error *error)
{
    int by_token = 0, with_search = 0, runs = 0, used = 0;
    unsigned long long rotate = 0;
    esp_matmul_problem problem;
    if (sscanf(line, "%d %d %llu %d %n", &by_token, &with_search, &rotate, &runs, &used) < 4) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value", "a request is malformed");
    }
    TRY(esp_matmul_problem_parse(line + used, &problem, error));
    const char *why = why_not(&problem);
    if (why != NULL) {
        return cli_fail(error, ESP_UNSUPPORTED, "bench.cusparselt", "%s", why);
    }
    product *made = calloc(1, sizeof *made);
    if (made == NULL || all->count == MOST_PRODUCTS) {
        free(made);
        return cli_fail_memory(error, "a product");
    }
    made->lt = all->lt;
    made->device = all->device;
    made->problem = problem;
    made->by_token = by_token != 0;
    made->out_type = problem.out_type == ESP_F32 ? ESP_F32 : problem.weight_type;
    esp_status status = prepare(made, with_search != 0, (size_t)rotate, runs, error);
    if (status != ESP_OK) {
        product_free(made);
        return status;
    }
    all->products[all->count++] = made;
    return ESP_OK;
}

static void drop_all(server *all)
{
    while (all->count > 0) {
        product_free(all->products[--all->count]);
    }
}

static void answer(server *all, const char *line)
{
    esp_error error = {.message = "no reason was given"};
    double us = 0;
    if (strncmp(line, "make ", 5) == 0) {
        if (make(all, line + 5, &error) == ESP_OK) {
            printf("ok %d %d.%d.%d\n", all->count - 1, all->lt->version[0], all->lt->version[1],
                   all->lt->version[2]);
            return;
        }
    } else if (strncmp(line, "time ", 5) == 0) {
        int which = atoi(line + 5);
        if (which >= 0 && which < all->count &&
            recorded_time(&all->products[which]->runs, &us, &error) == ESP_OK) {
            printf("us %.6f\n", us);
            return;
        }
    } else {
        drop_all(all);
        printf("ok\n");
        return;
    }
    printf("no %s\n", error.message);
}

int gpu_child_main(const char *device)
{
    static sparselt lt;
    server all = {.lt = &lt};
    esp_error error = {.message = "no reason was given"};
    char line[LINE];
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (esp_context_create(NULL, &all.context, &error) != ESP_OK ||
        esp_device_open(all.context, device, &all.device, &error) != ESP_OK) {
        printf("no %s\n", error.message);
        return 1;
    }
    const char *why_not = library_start(&lt);
    printf(why_not == NULL ? "ready\n" : "no %s\n", why_not);
    while (why_not == NULL && fgets(line, sizeof line, stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        answer(&all, line);
    }
    drop_all(&all);
    esp_device_close(all.device);
    esp_context_free(all.context);
    return 0;
}
