/* What a decoder's step takes along on Hopper: products that norm or gate what they read, and
 * attention that rotates and remembers the step's own row, each against the operations that would
 * run before it. Those are held to the reference by test_cuda_ops.c and test_cuda_places.c,
 * products and attention by test_cuda.c and test_cuda_attention.c. */
#ifdef ESP_HAVE_CUDA
#include "cuda/gpu_attention.h"
#include "gpu_bed.h"

static const char *const patterns[] = {"dense",  "2:4",          "64:2:8",
                                       "5:2:16", "panel:96@0.5", "128:2:5"};

/* ---- products ---- */

typedef struct prepared_product {
    const esp_plan *plan;
    esp_matmul_args args;
    const esp_prologue *prologue;
    bool gates;
} prepared_product;

static int go_product(const void *user)
{
    const prepared_product *p = user;
    esp_error error;
    const esp_around around = {.prologue = p->prologue, .next = p->args.weight, .gates = p->gates};
    return esp_plan_run(p->plan, &p->args, &around, &error) == ESP_OK ? 0 : 1;
}

/* A product, its weight, its X twice (up is the second), and a vector of weights of a norm. */
typedef struct subject {
    esp_matmul_problem problem;
    product source;
    esp_packed *packed;
    matrix x, up, weight, plain; /* plain: what the operation makes */
    float eps;
    void *workspace;
} subject;

static void draw_x(bed *b, const matrix *m, inputs kind)
{
    for (int64_t r = 0; r < m->rows; r++) {
        for (int64_t c = 0; c < m->columns; c++) {
            matrix_put(m, r, c, random_value(&b->random, kind, true));
        }
    }
    matrix_upload(b->run, b->device, m);
}

static subject subject_make(bed *b, esp_context *context, const char *text, inputs kind,
                            bool reorder)
{
    test_run *run = b->run;
    subject s = {.problem = problem_of(b->run, text), .eps = kind == REALS ? 1e-5f : 0};
    s.source =
        product_make(b->run, context, &s.problem, esp_random_u64(&b->random), kind, reorder, false);
    CHECK_OK(esp_pack(b->device, s.source.sparse, &s.packed, error));
    bool by_feature = s.problem.x_layout == ESP_FEATURE_MAJOR;
    int64_t rows = by_feature ? s.problem.in_features : s.problem.tokens;
    int64_t columns = by_feature ? s.problem.tokens : s.problem.in_features;
    laying how = laying_draw(&b->random, columns);
    s.x = matrix_make(b->run, b->device, s.problem.act_type, rows, columns, how);
    s.up = matrix_make(b->run, b->device, s.problem.act_type, rows, columns, how);
    s.plain = matrix_make(b->run, b->device, s.problem.act_type, rows, columns, how);
    s.weight = matrix_make(b->run, b->device, ESP_F32, 1, s.problem.in_features, (laying){0, 0});
    draw_x(b, &s.x, kind);
    draw_x(b, &s.up, kind);
    draw_x(b, &s.weight, kind);
    matrix_upload(b->run, b->device, &s.plain);
    s.workspace = device_copy(b->run, b->device, NULL, 1 << 20);
    return s;
}

static void subject_free(bed *b, subject *s)
{
    matrix_free(b->device, &s->x);
    matrix_free(b->device, &s->up);
    matrix_free(b->device, &s->plain);
    matrix_free(b->device, &s->weight);
    esp_device_release(b->device, s->workspace);
    esp_packed_free(s->packed);
    product_free(&s->source);
}

static int prepare(const subject *s, const esp_prologue *prologue)
{
    gpu_type type = gpu_type_of(s->problem.act_type);
    if (prologue->kind == ESP_PROLOGUE_SWIGLU) {
        return gpu_swiglu(type, matrix_there(&s->x), s->x.stride, prologue->up, s->x.stride,
                          s->x.rows, s->x.columns, matrix_there(&s->plain), s->x.stride, NULL);
    }
    int64_t stride = s->problem.x_layout == ESP_FEATURE_MAJOR ? s->x.stride : 1;
    const gpu_norm norm = {.type = type,
                           .x = matrix_there(&s->x),
                           .x_stride = stride,
                           .weight = prologue->weight,
                           .eps = prologue->eps,
                           .features = s->problem.in_features,
                           .tokens = 1,
                           .y = matrix_there(&s->plain),
                           .y_stride = stride};
    return gpu_rms_norm(&norm, NULL);
}

/* Y of the kernel, with the prologue or of what the operation made. */
static matrix result(bed *b, const subject *s, const esp_plan *plan, const esp_prologue *prologue,
                     laying how)
{
    bool by_feature = s->problem.y_layout == ESP_FEATURE_MAJOR;
    int64_t tokens = s->problem.tokens, out = s->source.out_rows;
    matrix y = matrix_make(b->run, b->device, s->problem.out_type, by_feature ? out : tokens,
                           by_feature ? tokens : out, how);
    prepared_product p = {.plan = plan,
                          .prologue = prologue,
                          .args = {.weight = s->packed,
                                   .x = matrix_there(prologue != NULL ? &s->x : &s->plain),
                                   .x_stride = s->x.stride,
                                   .y = matrix_there(&y),
                                   .y_stride = y.stride,
                                   .workspace = s->workspace}};
    matrix_run(b->run, b->device, &y, go_product, &p);
    return y;
}

static bool same_bits(const matrix *a, const matrix *b)
{
    return memcmp(a->host, b->host, a->bytes) == 0;
}

/* How much each row of Y may move because some normed values lie so near the middle between two
 * numbers of 16 bits that another order of the sum of squares (n terms: n 2^-24 of it at most, and
 * four roundings) decides. */
static void compare_normed(bed *b, const subject *s, const matrix *actual, const matrix *expected)
{
    test_run *run = b->run;
    int64_t in = s->problem.in_features, out = s->problem.out_features;
    double squares = 0, away = (double)(in / 2 + 8) * 0x1p-24;
    double *moves = calloc((size_t)in, sizeof *moves), *normed = calloc((size_t)in, sizeof *normed);
    esp_tensor dense = {0};
    CHECK_OK(esp_tensor_create(s->source.context, s->problem.weight_type, 2,
                               (const int64_t[]){out, in}, &dense, error));
    CHECK_OK(esp_sparse_decode(s->source.sparse, &dense, error));
    for (int64_t i = 0; i < in; i++) {
        bool by_token = s->problem.x_layout == ESP_TOKEN_MAJOR;
        normed[i] = (double)matrix_get(&s->x, by_token ? 0 : i, by_token ? i : 0);
        squares += normed[i] * normed[i];
    }
    for (int64_t i = 0; i < in; i++) {
        double v = normed[i] / sqrt(squares / (double)in + (double)s->eps) *
                   (double)matrix_get(&s->weight, 0, i);
        double low = (double)type_round(s->problem.act_type, (float)(v * (1 - away)));
        double high = (double)type_round(s->problem.act_type, (float)(v * (1 + away)));
        moves[i] = fabs(high - low);
        normed[i] = fmax(fabs(high), fabs(low));
    }
    for (int64_t o = 0; o < out; o++) {
        double bound = 0, magnitude = 0;
        for (int64_t i = 0; i < in; i++) {
            double w = fabs((double)esp_weight_at(dense.dtype, dense.data, o * in + i));
            bound += w * moves[i];
            magnitude += w * normed[i];
        }
        bound += (double)(in + 2) * 0x1p-23 * magnitude + 0x1p-126;
        bool by_token = s->problem.y_layout == ESP_TOKEN_MAJOR;
        int64_t row = by_token ? 0 : o, column = by_token ? o : 0;
        double have = (double)matrix_get(actual, row, column);
        double want = (double)matrix_get(expected, row, column);
        if (!(fabs(have - want) <= bound)) {
            test_fail(b->run, __FILE__, __LINE__, "row %lld: %.9g, by operations %.9g, bound %.3g",
                      (long long)o, have, want, bound);
            break;
        }
    }
    esp_tensor_free(s->source.context, &dense);
    free(moves);
    free(normed);
}

static void compare_kernel(bed *b, const subject *s, const char *kernel, esp_prologue_kind kind,
                           inputs numbers, int *taken)
{
    test_run *run = b->run;
    esp_plan *plan = NULL;
    /* Kernels of the spread form are for many tokens and take no operation. */
    const esp_plan_options wish = {.kernel_glob = kernel,
                                   .forms = ESP_FORM_SPARSE | ESP_FORM_SPREAD};
    CHECK_OK(esp_plan_create_with(b->device, &s->problem, &wish, &plan, error));
    if (plan != NULL && esp_plan_takes(plan, kind)) {
        const esp_prologue prologue = {kind, matrix_there(&s->weight), s->eps,
                                       matrix_there(&s->up)};
        laying how = laying_draw(&b->random, s->source.out_rows);
        CHECK_INT(prepare(s, &prologue), 0);
        matrix expected = result(b, s, plan, NULL, how),
               actual = result(b, s, plan, &prologue, how);
        if (kind == ESP_PROLOGUE_SWIGLU || numbers == INTEGERS) {
            CHECK(same_bits(&actual, &expected));
        } else {
            compare_normed(b, s, &actual, &expected);
        }
        matrix_free(b->device, &expected);
        matrix_free(b->device, &actual);
        *taken += 1;
    }
    esp_plan_free(plan);
}

/* Hopper's kernels for few tokens read panels of more than 32 rows and dense rows of 16 bytes. */
static bool some_kernel_takes(const esp_matmul_problem *problem)
{
    int64_t rows = esp_pattern_panel_rows(&problem->pattern, problem->out_features);
    return problem->pattern.kind == ESP_PATTERN_DENSE ? problem->in_features % 8 == 0
                                                      : rows == 0 || rows > GPU_SHORT_ROWS;
}

/* All kernels that take the operation, at one problem. */
static void check_problem(bed *b, esp_context *context, const char *text, esp_prologue_kind kind,
                          inputs numbers, bool reorder)
{
    test_run *run = b->run;
    const char *names[64];
    int taken = 0;
    subject s = subject_make(b, context, text, numbers, reorder);
    int count = usable_on(b->device, &s.problem, names);
    for (int i = 0; i < count; i++) {
        test_sub(b->run, "%s %s x stride %lld %s%s", text, names[i], (long long)s.x.stride,
                 numbers == INTEGERS ? "integers" : "reals", reorder ? " row order" : "");
        compare_kernel(b, &s, names[i], kind, numbers, &taken);
    }
    test_sub(b->run, "%s", text);
    CHECK(taken > 0 || !some_kernel_takes(&s.problem) || getenv("TEST_KERNEL") != NULL);
    subject_free(b, &s);
}

static bool on_hopper(bed *b)
{
    test_run *run = b->run;
    gpu_facts facts;
    CHECK_INT(gpu_get_facts(atoi(b->device->name + strlen("cuda:")), &facts), 0);
    if (facts.major == 9 && facts.minor == 0) {
        return true;
    }
    test_skip(b->run, "no kernel of this GPU takes operations");
    return false;
}

static const int sizes[][2] = {{1, 8},     {77, 88},    {130, 64},  {64, 384},   {193, 136},
                               {70, 4096}, {300, 1016}, {513, 640}, {96, 11008}, {66, 85}};

static void gated(bed *b)
{
    static const char *const layouts[] = {"", "/x:tok", "/y:tok/o:f32", "/x:tok/o:f32"};
    esp_context *context = b->device->context;
    const char *type = b->type == ESP_F16 ? "f16" : "bf16";
    for (int i = 0; on_hopper(b) && i < ESP_COUNT(sizes); i++) {
        for (int j = 0; j < ESP_COUNT(patterns); j++) {
            char text[128];
            int tokens = 1 + (i * 5 + j * 3) % 8;
            snprintf(text, sizeof text, "matmul/%s/%s/%dx%dx%d%s", patterns[j], type, sizes[i][0],
                     sizes[i][1], (i + j) % 3 == 0 ? 8 : tokens, layouts[(i + j) % 4]);
            check_problem(b, context, text, ESP_PROLOGUE_SWIGLU,
                          (i + j) % 2 == 0 ? REALS : INTEGERS, (i + j) % 3 == 1);
        }
    }
}

static void normed(bed *b)
{
    static const char *const layouts[] = {"/o:f32", "/x:tok/o:f32", "/y:tok/o:f32", "/o:f32"};
    esp_context *context = b->device->context;
    const char *type = b->type == ESP_F16 ? "f16" : "bf16";
    for (int i = 0; on_hopper(b) && i < ESP_COUNT(sizes); i++) {
        for (int j = 0; j < ESP_COUNT(patterns); j++) {
            char text[128];
            snprintf(text, sizeof text, "matmul/%s/%s/%dx%dx1%s", patterns[j], type, sizes[i][0],
                     sizes[i][1], layouts[(i + j) % 4]);
            check_problem(b, context, text, ESP_PROLOGUE_RMS_NORM,
                          (i + j) % 2 == 0 ? REALS : INTEGERS, (i + j) % 3 == 1);
        }
    }
}

/* ---- halves that are joined ---- */

/* Y of the kernel for few tokens, of so many rows. */
static matrix joined_result(bed *b, const subject *s, const esp_matmul_problem *problem, bool gates)
{
    test_run *run = b->run;
    esp_plan *plan = NULL;
    const esp_plan_options wish = {.kernel_glob = "*sm90_few", .forms = ESP_FORM_SPARSE};
    CHECK_OK(esp_plan_create_with(b->device, problem, &wish, &plan, error));
    CHECK(!gates || esp_plan_gates(plan, s->packed));
    matrix y =
        matrix_make(b->run, b->device, problem->out_type, problem->out_features / (gates ? 2 : 1),
                    problem->tokens, laying_draw(&b->random, problem->tokens));
    prepared_product p = {.plan = plan,
                          .gates = gates,
                          .args = {.weight = s->packed,
                                   .x = matrix_there(&s->x),
                                   .x_stride = s->x.stride,
                                   .y = matrix_there(&y),
                                   .y_stride = y.stride,
                                   .workspace = s->workspace}};
    if (gates) { /* room for all rows is what the call is held to */
        p.args.y = device_copy(b->run, b->device, NULL,
                               (size_t)(problem->out_features * y.stride) * y.width);
        CHECK_INT(go_product(&p), 0);
        CHECK_OK(esp_device_wait(b->device, error));
        CHECK_OK(esp_device_download(b->device, matrix_at(&y, 0, 0), p.args.y,
                                     (size_t)(y.rows * y.stride) * y.width, error));
        esp_device_release(b->device, p.args.y);
    } else {
        matrix_run(b->run, b->device, &y, go_product, &p);
    }
    esp_plan_free(plan);
    return y;
}

/* Sums of integers are exact in f32, whoever adds them: silu and one rounding are left. */
static void compare_joined(bed *b, const matrix *joined, const matrix *apart)
{
    double unit = joined->type == ESP_F16 ? 0x1p-11 : 0x1p-8;
    double most = joined->type == ESP_F16 ? 65504 : 3e38;
    for (int64_t r = 0; r < joined->rows; r++) {
        for (int64_t t = 0; t < joined->columns; t++) {
            double gate = (double)matrix_get(apart, r, t);
            double want = gate / (1 + exp(-gate)) * (double)matrix_get(apart, joined->rows + r, t);
            double have = (double)matrix_get(joined, r, t);
            if (fabs(want) > most && fabs(have) >= most && have * want > 0) {
                continue; /* it has become infinite, or the largest number */
            }
            if (!(fabs(have - want) <= (unit + 0x1p-21) * fabs(want) + 0x1p-24)) {
                test_fail(b->run, __FILE__, __LINE__, "row %lld, token %lld: %.9g, not %.9g",
                          (long long)r, (long long)t, have, want);
                return;
            }
        }
    }
}

static void joined(bed *b)
{
    static const struct {
        const char *pattern;
        int out, in;
    } shapes[] = {{"64:2:8", 128, 64},    {"64:2:8", 1280, 1000},    {"128:2:5", 512, 136},
                  {"192:2:8", 384, 4096}, {"panel:64@0.5", 128, 72}, {"64:2:16", 22016, 64}};
    static const int tokens[] = {8, 16};
    test_run *run = b->run;
    const char *type = b->type == ESP_F16 ? "f16" : "bf16";
    for (int i = 0; on_hopper(b) && i < 2 * ESP_COUNT(shapes); i++) {
        char text[128], wide[136];
        snprintf(text, sizeof text, "matmul/%s/%s/%dx%dx%d", shapes[i / 2].pattern, type,
                 shapes[i / 2].out, shapes[i / 2].in, tokens[i % 2]);
        snprintf(wide, sizeof wide, "%s/o:f32", text);
        test_sub(run, "%s", text);
        subject s = subject_make(b, b->device->context, wide, INTEGERS, false);
        esp_matmul_problem narrow = problem_of(run, text);
        matrix together = joined_result(b, &s, &narrow, true),
               apart = joined_result(b, &s, &s.problem, false);
        compare_joined(b, &together, &apart);
        matrix_free(b->device, &together);
        matrix_free(b->device, &apart);
        subject_free(b, &s);
    }
}

/* ---- attention ---- */

typedef struct step {
    bool along;    /* the row comes along */
    int32_t moves; /* by so much the sequences end elsewhere until the launch just before */
    gpu_place *places;
    gpu_rope_append append;
    gpu_attention_decode attention;
} step;

static int go_step(const void *user)
{
    const step *s = user;
    int64_t count = s->attention.sequences;
    int failed = s->along ? 0 : gpu_rope_append_run(&s->append, NULL);
    failed = failed != 0 ? failed : gpu_advance(s->places, count, -s->moves, NULL);
    failed = failed != 0 ? failed : gpu_advance(s->places, count, s->moves, NULL);
    return failed != 0 ? failed : gpu_attend_decode(&s->attention, NULL);
}

/* Caches of all sequences, [sequences][keys, values][kv_heads * capacity * head_dim], and what the
 * step left. */
typedef struct step_result {
    matrix y, caches, qkv;
} step_result;

typedef struct step_shape {
    int64_t heads, kv_heads, head_dim, sequences, capacity;
    int32_t moves;
} step_shape;

/* The same from the same seed. */
static step_result run_step(bed b, const step_shape *n, bool along)
{
    test_run *run = b.run;
    int64_t row = n->kv_heads * n->capacity * n->head_dim, most = n->capacity - 1;
    int64_t features = (n->heads + 2 * n->kv_heads) * n->head_dim;
    laying how = laying_draw(&b.random, n->sequences);
    matrix qkv = matrix_make(b.run, b.device, b.type, features, n->sequences, how);
    matrix y = bed_matrix(&b, b.type, n->heads * n->head_dim, n->sequences);
    matrix caches = bed_table(&b, b.type, 2 * n->sequences, row, 1);
    matrix cosines = bed_drawn(&b, ESP_F32, n->head_dim / 2, n->sequences, 1);
    matrix sines = matrix_make(b.run, b.device, ESP_F32, n->head_dim / 2, n->sequences,
                               (laying){cosines.stride - n->sequences, 0});
    gpu_place *places = calloc((size_t)n->sequences, sizeof *places);
    matrix_draw(&qkv, &b.random, 2);
    matrix_draw(&sines, &b.random, 1);
    matrix_upload(b.run, b.device, &qkv);
    matrix_upload(b.run, b.device, &sines);
    for (int64_t t = 0; t < n->sequences; t++) {
        char *keys = (char *)matrix_there(&caches) + (size_t)(2 * t * row) * 2;
        int32_t past = (int32_t)(t == 0 ? most : between(&b, 0, most));
        places[t] = (gpu_place){keys, keys + (size_t)row * 2, past, (int32_t)n->capacity};
    }
    void *there = device_copy(b.run, b.device, places, (size_t)n->sequences * sizeof *places);
    char *q = matrix_there(&qkv), *k = q + (size_t)(n->heads * n->head_dim * qkv.stride) * 2;
    char *v = k + (size_t)(n->kv_heads * n->head_dim * qkv.stride) * 2;
    gpu_facts facts;
    CHECK_INT(gpu_get_facts(atoi(b.device->name + strlen("cuda:")), &facts), 0);
    step s = {.along = along, .moves = n->moves, .places = there};
    s.append = (gpu_rope_append){.type = gpu_type_of(b.type),
                                 .q = q,
                                 .k = k,
                                 .v = v,
                                 .stride = qkv.stride,
                                 .heads = n->heads,
                                 .kv_heads = n->kv_heads,
                                 .head_dim = n->head_dim,
                                 .tokens = n->sequences,
                                 .cosines = matrix_there(&cosines),
                                 .sines = matrix_there(&sines),
                                 .angle_stride = cosines.stride,
                                 .places = there};
    s.attention = (gpu_attention_decode){.type = gpu_type_of(b.type),
                                         .q = q,
                                         .stride = qkv.stride,
                                         .y = matrix_there(&y),
                                         .y_stride = y.stride,
                                         .places = there,
                                         .sequences = n->sequences,
                                         .longest = n->capacity,
                                         .heads = n->heads,
                                         .kv_heads = n->kv_heads,
                                         .head_dim = n->head_dim,
                                         .scale = 0.1f,
                                         .multiprocessors = facts.multiprocessors,
                                         .overlaps = facts.major >= 9};
    if (along) {
        s.attention.k = k, s.attention.v = v;
        s.attention.cosines = matrix_there(&cosines), s.attention.sines = matrix_there(&sines);
        s.attention.angle_stride = cosines.stride;
        matrix_run(b.run, b.device, &y, go_step, &s);
    } else { /* q is turned in place: once only */
        matrix_upload(b.run, b.device, &y);
        CHECK_INT(go_step(&s), 0);
        CHECK_OK(esp_device_wait(b.device, error));
        CHECK_OK(esp_device_download(b.device, y.host, y.device, y.bytes, error));
    }
    CHECK_OK(esp_device_download(b.device, caches.host, caches.device, caches.bytes, error));
    esp_device_release(b.device, there);
    matrix_free(b.device, &cosines);
    matrix_free(b.device, &sines);
    free(places);
    return (step_result){y, caches, qkv};
}

static void check_step(bed *b, const step_shape *n)
{
    test_run *run = b->run;
    test_sub(b->run, "%lld:%lld heads of %lld, %lld sequences of %lld, moved by %d",
             (long long)n->heads, (long long)n->kv_heads, (long long)n->head_dim,
             (long long)n->sequences, (long long)n->capacity, (int)n->moves);
    step_result apart = run_step(*b, n, false), along = run_step(*b, n, true);
    CHECK(same_bits(&apart.y, &along.y));
    CHECK(same_bits(&apart.caches, &along.caches));
    step_result *both[] = {&apart, &along};
    for (int k = 0; k < 2; k++) {
        matrix_free(b->device, &both[k]->y);
        matrix_free(b->device, &both[k]->caches);
        matrix_free(b->device, &both[k]->qkv);
    }
    (void)esp_random_u64(&b->random);
}

static void steps(bed *b)
{
    static const int heads[][2] = {{4, 4}, {8, 1}, {6, 2}, {20, 1}, {1, 1}, {32, 32}, {34, 2}};
    static const int dims[] = {8, 32, 64, 72, 80, 96, 128, 136, 256};
    static const int capacities[] = {1, 2, 15, 16, 17, 64, 65, 127, 128, 129, 511, 1025, 4096};
    static const int32_t moves[] = {0, 1, -1, 40, 5000};
    for (int i = 0; i < 91; i++) {
        step_shape n = {heads[i % 7][0],  heads[i % 7][1],          dims[i % 9],
                        1 + (i * 5) % 16, capacities[(i * 4) % 13], moves[i % 5]};
        n.sequences = n.capacity > 1000 ? (n.sequences + 3) / 4 : n.sequences;
        check_step(b, &n);
    }
}

/* ---- for the tools that watch every access to memory ---- */

static void some_of_each(bed *b)
{
    static const struct {
        const char *size;
        esp_prologue_kind kind;
    } products[] = {{"77x88x3", ESP_PROLOGUE_SWIGLU},
                    {"70x1096x8", ESP_PROLOGUE_SWIGLU},
                    {"130x200x1/o:f32", ESP_PROLOGUE_RMS_NORM},
                    {"70x2056x1/x:tok/o:f32", ESP_PROLOGUE_RMS_NORM}};
    static const step_shape shapes[] = {{4, 4, 32, 2, 65, 0},
                                        {6, 2, 80, 5, 17, 1},
                                        {20, 1, 64, 1, 200, -1},
                                        {8, 1, 128, 16, 2, 40}};
    static const char *const some[] = {"dense", "2:4", "64:2:8"};
    const char *type = b->type == ESP_F16 ? "f16" : "bf16";
    for (int i = 0; on_hopper(b) && i < ESP_COUNT(products); i++) {
        for (int j = 0; j < ESP_COUNT(some); j++) {
            char text[128];
            snprintf(text, sizeof text, "matmul/%s/%s/%s", some[j], type, products[i].size);
            check_problem(b, b->device->context, text, products[i].kind, REALS, (i + j) % 2 == 1);
        }
    }
    for (int i = 0; i < ESP_COUNT(shapes); i++) {
        check_step(b, &shapes[i]);
    }
}

ON_GPU(gated_on_gpu, gated)
ON_GPU(normed_on_gpu, normed)
ON_GPU(joined_on_gpu, joined)
ON_GPU(steps_on_gpu, steps)
ON_GPU(some_for_sanitizers, some_of_each)

static const test_case cases[] = {{"gated_products", gated_on_gpu},
                                  {"normed_products", normed_on_gpu},
                                  {"joined_halves", joined_on_gpu},
                                  {"steps_of_attention", steps_on_gpu},
                                  {"some_for_sanitizers", some_for_sanitizers}};
#else
#include "without_cuda.h"
#endif
TEST_MAIN(cases)
