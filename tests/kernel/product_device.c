#include "product_device.h"

#define GUARD_BYTES 256 /* keeps the alignment of what follows */

device_layout layout_draw(const product *p, uint64_t seed)
{
    const esp_matmul_problem *problem = &p->problem;
    uint64_t bits = esp_splitmix64(&(uint64_t){seed ^ 0x1a70});
    int64_t x_row = problem->x_layout == ESP_FEATURE_MAJOR ? problem->tokens : problem->in_features;
    int64_t y_row = problem->y_layout == ESP_FEATURE_MAJOR ? problem->tokens : p->out_rows;
    device_layout layout = {x_row, y_row, 0, 0};
    if (bits % 4 < 2) {
        layout.x_stride = (x_row + 7) / 8 * 8 + (bits % 4 == 0 ? 8 : 0);
        layout.y_stride = (y_row + 7) / 8 * 8 + (bits % 4 == 0 ? 16 : 0);
    } else if (bits % 4 == 2) {
        layout.x_stride = x_row + 3;
        layout.y_stride = y_row + 5;
        layout.x_offset = (int64_t)(bits >> 8) % 3;
        layout.y_offset = (int64_t)(bits >> 12) % 3;
    }
    return layout;
}

/* ---- memory ---- */

typedef struct block {
    char *host, *device; /* of the whole block, guards included */
    size_t bytes, begin; /* where the operand begins */
} block;

/* All ones: NaN in every type. The block ends with its guard, so that what a checker of the
 * device's memory calls out of range is out of range. */
static block block_make(test_run *run, esp_device *device, size_t offset, size_t bytes)
{
    block made = {.bytes = 2 * GUARD_BYTES + offset + bytes, .begin = GUARD_BYTES + offset};
    made.host = malloc(made.bytes);
    made.device = esp_device_alloc(device, made.bytes);
    CHECK(made.device != NULL);
    memset(made.host, 0xff, made.bytes);
    return made;
}

/* Of the device alone: cuBLASLt's workspace of 32 MB would take longer to copy than all else. */
static block block_make_there(test_run *run, esp_device *device, size_t bytes)
{
    block made = {.bytes = 2 * GUARD_BYTES + bytes, .begin = GUARD_BYTES};
    made.device = esp_device_alloc(device, made.bytes);
    CHECK(made.device != NULL);
    return made;
}

static void block_free(esp_device *device, block *made)
{
    esp_device_release(device, made->device);
    free(made->host);
}

static void block_upload(test_run *run, esp_device *device, const block *from)
{
    CHECK_OK(esp_device_upload(device, from->device, from->host, from->bytes, error));
}

static int64_t rows_of(esp_layout layout, int64_t features, int64_t tokens)
{
    return layout == ESP_FEATURE_MAJOR ? features : tokens;
}

static void lay_x(const product *p, int64_t stride, char *to)
{
    const esp_matmul_problem *problem = &p->problem;
    size_t width = esp_dtype_bytes(problem->act_type);
    int64_t rows = rows_of(problem->x_layout, problem->in_features, problem->tokens);
    int64_t row = problem->in_features * problem->tokens / rows;
    for (int64_t i = 0; i < rows; i++) {
        memcpy(to + (size_t)(i * stride) * width, p->x + (size_t)(i * p->x_stride) * width,
               (size_t)row * width);
    }
}

static void lay_residual(const product *p, int64_t stride, char *to)
{
    bool by_feature = p->problem.y_layout == ESP_FEATURE_MAJOR;
    for (int64_t o = 0; o < p->out_rows; o++) {
        for (int64_t t = 0; t < p->problem.tokens; t++) {
            put(p->problem.out_type, to, element_at(by_feature, stride, o, t),
                p->residual[o * p->problem.tokens + t]);
        }
    }
}

typedef struct operands {
    block x, y, residual, scale, bias, workspace;
} operands;

static operands operands_make(test_run *run, const product *p, esp_device *device,
                              const device_layout *layout, size_t workspace_bytes)
{
    const esp_matmul_problem *problem = &p->problem;
    size_t in_width = esp_dtype_bytes(problem->act_type);
    size_t out_width = esp_dtype_bytes(problem->out_type);
    size_t out = (size_t)problem->out_features * sizeof(float);
    int64_t x_rows = rows_of(problem->x_layout, problem->in_features, problem->tokens);
    int64_t y_rows = rows_of(problem->y_layout, p->out_rows, problem->tokens);
    size_t y_offset = (size_t)layout->y_offset * out_width;
    size_t y_bytes = (size_t)(y_rows * layout->y_stride) * out_width;
    operands made = {
        .x = block_make(run, device, (size_t)layout->x_offset * in_width,
                        (size_t)(x_rows * layout->x_stride) * in_width),
        .y = block_make(run, device, y_offset, y_bytes),
        .residual = block_make(run, device, y_offset, y_bytes),
        .scale = block_make(run, device, 0, out),
        .bias = block_make(run, device, 0, out),
        .workspace = block_make_there(run, device, workspace_bytes),
    };
    lay_x(p, layout->x_stride, made.x.host + made.x.begin);
    memcpy(made.scale.host + made.scale.begin, p->scale, out);
    memcpy(made.bias.host + made.bias.begin, p->bias, out);
    lay_residual(p, layout->y_stride,
                 p->in_place ? made.y.host + made.y.begin
                             : made.residual.host + made.residual.begin);
    return made;
}

/* What a run reads; it stays for the next. */
static void upload_inputs(test_run *run, esp_device *device, const operands *all)
{
    block_upload(run, device, &all->x);
    block_upload(run, device, &all->residual);
    block_upload(run, device, &all->scale);
    block_upload(run, device, &all->bias);
}

static void upload_outputs(test_run *run, esp_device *device, const operands *all)
{
    block_upload(run, device, &all->y);
    CHECK_OK(esp_device_fill(device, all->workspace.device, 0xff, all->workspace.bytes, error));
}

static void operands_free(esp_device *device, operands *all)
{
    block_free(device, &all->x);
    block_free(device, &all->y);
    block_free(device, &all->residual);
    block_free(device, &all->scale);
    block_free(device, &all->bias);
    block_free(device, &all->workspace);
}

/* ---- checks ---- */

static bool same(const block *of, const char *after, size_t from, size_t to)
{
    return memcmp(of->host + from, after + from, to - from) == 0;
}

/* Bytes of Y's block outside its rows are what was laid there. */
static bool gaps_untouched(const product *p, const operands *all, int64_t stride, const char *after)
{
    size_t width = esp_dtype_bytes(p->problem.out_type);
    int64_t rows = rows_of(p->problem.y_layout, p->out_rows, p->problem.tokens);
    size_t row = (size_t)(p->out_rows * p->problem.tokens / rows) * width;
    const block *y = &all->y;
    size_t at = y->begin, step = (size_t)stride * width;
    bool untouched = same(y, after, 0, at);
    for (int64_t i = 0; i < rows; i++, at += step) {
        untouched = untouched && same(y, after, at + row, at + step);
    }
    return untouched && same(y, after, at, y->bytes);
}

static bool guards_hold(test_run *run, esp_device *device, const block *guarded)
{
    unsigned char after[2][GUARD_BYTES];
    bool hold = true;
    CHECK_OK(esp_device_download(device, after[0], guarded->device, GUARD_BYTES, error));
    CHECK_OK(esp_device_download(device, after[1], guarded->device + guarded->bytes - GUARD_BYTES,
                                 GUARD_BYTES, error));
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        hold = hold && after[0][i] == 0xff && after[1][i] == 0xff;
    }
    return hold;
}

static void read_result(const product *p, int64_t stride, const char *y, float *result)
{
    bool by_feature = p->problem.y_layout == ESP_FEATURE_MAJOR;
    for (int64_t o = 0; o < p->out_rows; o++) {
        for (int64_t t = 0; t < p->problem.tokens; t++) {
            result[o * p->problem.tokens + t] =
                esp_weight_at(p->problem.out_type, y, element_at(by_feature, stride, o, t));
        }
    }
}

/* ---- running ---- */

static void run_once(test_run *run, const product *p, esp_device *device, const esp_plan *plan,
                     const esp_packed *weight, const operands *all, const device_layout *layout,
                     const esp_around *around, char *after)
{
    const block *residual = p->in_place ? &all->y : &all->residual;
    esp_matmul_args args = {
        .weight = weight,
        .x = all->x.device + all->x.begin,
        .x_stride = layout->x_stride,
        .y = all->y.device + all->y.begin,
        .y_stride = layout->y_stride,
        .scale = (const float *)(const void *)(all->scale.device + all->scale.begin),
        .bias = (const float *)(const void *)(all->bias.device + all->bias.begin),
        .residual = residual->device + residual->begin,
        .workspace = all->workspace.device + all->workspace.begin};
    upload_outputs(run, device, all);
    CHECK_OK(esp_plan_run(plan, &args, around, error));
    CHECK_OK(esp_device_wait(device, error));
    CHECK_OK(esp_device_download(device, after, all->y.device, all->y.bytes, error));
    CHECK(gaps_untouched(p, all, layout->y_stride, after));
    CHECK(guards_hold(run, device, &all->workspace));
}

void run_on_gpu(test_run *run, const product *p, esp_device *device, const char *kernel,
                const device_layout *layout, float *result)
{
    run_around_on_gpu(run, p, device, kernel, layout, &(const esp_around){0}, result);
}

void run_around_on_gpu(test_run *run, const product *p, esp_device *device, const char *kernel,
                       const device_layout *layout, const esp_around *around, float *result)
{
    esp_packed *packed = NULL;
    esp_plan *plan = NULL;
    esp_plan_options wish = {.kernel_glob = kernel, .forms = ESP_FORM_SPARSE | ESP_FORM_SPREAD};
    CHECK_OK(esp_plan_create_with(device, &p->problem, &wish, &plan, error));
    const esp_pack_options one = {.forms = plan != NULL ? esp_plan_form(plan) : 0};
    CHECK_OK(esp_pack_with(device, p->sparse, &one, &packed, error));
    if (packed != NULL && plan != NULL) {
        operands all = operands_make(run, p, device, layout, esp_plan_workspace_bytes(plan));
        char *first = malloc(all.y.bytes), *second = malloc(all.y.bytes);
        upload_inputs(run, device, &all);
        run_once(run, p, device, plan, packed, &all, layout, around, first);
        run_once(run, p, device, plan, packed, &all, layout, around, second);
        CHECK(memcmp(first, second, all.y.bytes) == 0);
        read_result(p, layout->y_stride, first + all.y.begin, result);
        free(first);
        free(second);
        operands_free(device, &all);
    }
    esp_plan_free(plan);
    esp_packed_free(packed);
}

esp_device *open_gpu(test_run *run, esp_context *context)
{
    esp_device_info infos[32];
    int count = esp_device_list(context, infos, ESP_COUNT(infos));
    for (int i = 0; i < count && i < ESP_COUNT(infos); i++) {
        esp_device *device = NULL;
        if (strncmp(infos[i].name, "cuda:", 5) == 0 && infos[i].usable) {
            CHECK_OK(esp_device_open(context, infos[i].name, &device, error));
            return device;
        }
    }
    test_skip(run, "no GPU that can be used");
    return NULL;
}

int usable_on(const esp_device *device, const esp_matmul_problem *problem, const char *names[64])
{
    int count = 0;
    const char *part = getenv("TEST_KERNEL");
    for (int i = 0; i < esp_kernel_count() && count < 64; i++) {
        bool wanted = part == NULL || strstr(esp_kernel_get(i).name, part) != NULL;
        if (wanted && esp_kernel_why_not(i, device, problem) == NULL) {
            names[count++] = esp_kernel_get(i).name;
        }
    }
    return count;
}
