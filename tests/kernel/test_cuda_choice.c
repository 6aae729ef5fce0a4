/* Which kernel of the GPU a product gets by scores alone, as if such a GPU were there: nothing of
 * it is asked but what it is, so this needs no GPU, but the GPU back end. */
#include <math.h>

#include "product_device.h"

#ifdef ESP_HAVE_CUDA
#include "cuda/room.h"
#include "plan/plan.h"

/* What esp_plan_fill takes on a Hopper GPU without cuBLASLt, of no kind that times ship for. */
static void choose_at(test_run *run, const char *text, unsigned forms, double gb_per_s,
                      esp_plan *plan)
{
    esp_context *context = test_context(run, 1);
    cuda_state state = {
        .facts = {.name = "a Hopper", .major = 9, .multiprocessors = 132, .gb_per_s = gb_per_s},
        .most_clusters = {132, 66, 30, 15}, /* as an H100 says */
        .cublaslt_asked = true};
    esp_device device = {.context = context, .backend = &esp_cuda_backend, .state = &state};
    esp_matmul_problem problem;
    esp_error failure = {0};
    esp_plan_options options = ESP_PLAN_OPTIONS_INIT;
    options.forms = forms;
    pthread_mutex_init(&state.lock, NULL);
    if (esp_matmul_problem_parse(text, &problem, &failure) != ESP_OK ||
        esp_plan_fill(&device, &problem, &options, plan, &failure) != ESP_OK) {
        test_fail(run, __FILE__, __LINE__, "%s", failure.message);
        *plan = (esp_plan){.kernel = &(const esp_kernel){.name = "none"}};
    }
    pthread_mutex_destroy(&state.lock);
    test_context_free(run, context);
}

static void choose(test_run *run, const char *text, unsigned forms, esp_plan *plan)
{
    choose_at(run, text, forms, 3350, plan);
}

static const char *const block_patterns[] = {
    "block:16x16@0.9", "block:32x32@0.9",  "block:64x64@0.5",   "block:64x64@0.8",
    "block:64x64@0.9", "block:64x64@0.95", "block:128x128@0.9", "block:128x128@0.98"};

/* The kernel for any GPU leaves all sums through strips: 1624 us where Hopper's takes 190 for the
 * first feed-forward product of ViT-large. No ending may make it the faster one. */
static void blocks_on_hopper(test_run *run)
{
    static const char *const ends[] = {"4096x1024x50432/ep:bias+gelu",
                                       "1024x4096x50432/ep:bias+residual",
                                       "3072x768x12608/ep:bias+gelu",
                                       "768x3072x12608/ep:bias+residual",
                                       "4096x4096x512/ep:bias",
                                       "4096x4096x4096/ep:bias+silu+residual",
                                       "11008x4096x512/ep:swiglu",
                                       "4096x4096x100",
                                       "4096x1024x50432/o:f32/ep:bias+gelu",
                                       "1024x4096x50431/y:tok/ep:bias+gelu_tanh",
                                       "4096x1024x50433/ep:bias+gelu",
                                       "4096x1024x50432/x:tok/y:tok/ep:bias+relu"};
    for (int p = 0; p < ESP_COUNT(block_patterns); p++) {
        for (int e = 0; e < 2 * ESP_COUNT(ends); e++) {
            char text[160];
            esp_plan plan;
            snprintf(text, sizeof text, "matmul/%s/%s/%s", block_patterns[p],
                     e % 2 == 0 ? "f16" : "bf16", ends[e / 2]);
            test_sub(run, "%s", text);
            choose(run, text, ESP_FORM_SPARSE, &plan);
            CHECK(strstr(plan.kernel->name, "__cuda_sm90_128x") != NULL);
        }
    }
}

/* Nor may it of panels, in tiles that are many or few. */
static void panels_on_hopper(test_run *run)
{
    static const char *const patterns[] = {"2:4", "64:2:5", "128:2:8", "64:2:16", "panel:64@0.9"};
    static const char *const ends[] = {"4096x1024x50432/ep:bias+gelu",
                                       "1024x4096x50432/ep:bias+residual",
                                       "4096x4096x4096/ep:bias+silu+residual",
                                       "11008x4096x512/ep:swiglu",
                                       "4096x1024x50432/o:f32/ep:bias+gelu",
                                       "4096x1024x50433/ep:gelu_tanh",
                                       "4096x1024x50432/x:tok/y:tok/ep:bias+relu",
                                       "768x768x200/ep:bias",
                                       "3072x768x197/ep:bias+gelu",
                                       "768x3072x200/ep:bias+residual",
                                       "4096x4096x100/ep:bias+gelu_tanh",
                                       "384x384x40"};
    for (int p = 0; p < ESP_COUNT(patterns); p++) {
        for (int e = 0; e < ESP_COUNT(ends); e++) {
            char text[160];
            esp_plan plan;
            snprintf(text, sizeof text, "matmul/%s/f16/%s", patterns[p], ends[e]);
            test_sub(run, "%s", text);
            choose(run, text, ESP_FORM_SPARSE | ESP_FORM_SPREAD, &plan);
            CHECK(strstr(plan.kernel->name, "__cuda_sm90_") != NULL);
        }
    }
}

/* The kernel that streams weights takes 17 us for 2:4 of 11008x4096, where tiles take 27 to 48,
 * with the memory of an H100 and of an H200. */
static void few_tokens_on_hopper(test_run *run)
{
    static const char *const patterns[] = {"2:4", "64:2:5", "64:2:8", "128:2:8", "256:2:16"};
    static const char *const shapes[] = {"11008x4096", "4096x4096", "4096x11008", "22016x4096",
                                         "28672x8192", "3072x768",  "768x3072",   "768x768"};
    static const int tokens[] = {1, 8, 16};
    for (int i = 0; i < ESP_COUNT(patterns) * ESP_COUNT(shapes) * ESP_COUNT(tokens) * 2; i++) {
        char text[160];
        esp_plan plan;
        int shape = i / 2 / ESP_COUNT(patterns);
        snprintf(text, sizeof text, "matmul/%s/f16/%sx%d", patterns[i / 2 % ESP_COUNT(patterns)],
                 shapes[shape % ESP_COUNT(shapes)], tokens[shape / ESP_COUNT(shapes)]);
        test_sub(run, "%s, memory of %s", text, i % 2 == 0 ? "3.35 TB/s" : "4.8 TB/s");
        choose_at(run, text, ESP_FORM_SPARSE | ESP_FORM_SPREAD, i % 2 == 0 ? 3350 : 4800, &plan);
        CHECK(strstr(plan.kernel->name, "__cuda_sm90_few") != NULL);
    }
}

/* Dense weights likewise: 34, 36 and 66 us by the streaming kernel, cuBLASLt and tiles. */
static void few_dense_on_hopper(test_run *run)
{
    static const char *const shapes[] = {"12288x4096", "22016x4096", "4096x4096",
                                         "4096x11008", "2304x768",   "768x3072"};
    static const int tokens[] = {1, 8, 16};
    for (int i = 0; i < ESP_COUNT(shapes) * ESP_COUNT(tokens) * 2; i++) {
        char text[160];
        esp_plan plan;
        snprintf(text, sizeof text, "matmul/dense/f16/%sx%d", shapes[i / 2 % ESP_COUNT(shapes)],
                 tokens[i / 2 / ESP_COUNT(shapes)]);
        test_sub(run, "%s, memory of %s", text, i % 2 == 0 ? "3.35 TB/s" : "4.8 TB/s");
        choose_at(run, text, 0, i % 2 == 0 ? 3350 : 4800, &plan);
        CHECK(strstr(plan.kernel->name, "__cuda_sm90_few") != NULL);
        const esp_kernel *library = &cuda_dense_kernels[0];
        cuda_state state = {.facts = {.major = 9, .gb_per_s = i % 2 == 0 ? 3350 : 4800}};
        esp_device device = {.backend = &esp_cuda_backend, .state = &state};
        CHECK(library->score_us(library, &device, &plan.run) > plan.reason.us);
    }
}

/* Where the weight is held in both forms, too, feed-forward products of nine tenths zeros in blocks
 * run sparse. */
static void blocks_beside_dense(test_run *run)
{
    static const char *const texts[] = {
        "matmul/block:64x64@0.9/f16/4096x1024x50432/ep:bias+gelu",
        "matmul/block:64x64@0.9/f16/1024x4096x50432/ep:bias+residual",
        "matmul/block:32x32@0.9/f16/4096x1024x50432/ep:bias+gelu",
        "matmul/block:64x64@0.8/f16/4096x1024x50432/ep:bias+gelu"};
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        esp_plan plan;
        test_sub(run, "%s", texts[i]);
        choose(run, texts[i], ESP_FORM_SPARSE | ESP_FORM_DENSE, &plan);
        CHECK(strstr(plan.kernel->name, "matmul_bsr_f16_f16__cuda_sm90_128x256") != NULL);
        CHECK(!plan.runs_dense && plan.reason.dense_us > plan.reason.us);
    }
}

/* The portable kernels need compute capability 8.0; a GPU below is shown, with the reason. */
static void gpus_of_any_age(test_run *run)
{
    static const struct {
        int major, minor;
        const char *code; /* NULL: it can be used */
    } rows[] = {{7, 5, "device.old_gpu"},
                {5, 0, "device.old_gpu"},
                {8, 0, NULL},
                {8, 9, NULL},
                {9, 0, NULL},
                {12, 0, NULL}};
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        const gpu_facts facts = {.name = "a GPU",
                                 .major = rows[i].major,
                                 .minor = rows[i].minor,
                                 .multiprocessors = 40,
                                 .memory_bytes = 1 << 30};
        esp_device_info info = {0};
        char version[16];
        test_sub(run, "%d.%d", rows[i].major, rows[i].minor);
        snprintf(version, sizeof version, " %d.%d,", rows[i].major, rows[i].minor);
        const char *code = cuda_describe(3, &facts, &info);
        CHECK_TEXT(code != NULL ? code : "usable", rows[i].code != NULL ? rows[i].code : "usable");
        CHECK(info.usable == (code == NULL));
        CHECK_TEXT(info.name, "cuda:3");
        CHECK(strstr(info.description, version) != NULL && info.memory_bytes == 1 << 30);
        CHECK((strstr(info.why_not, "8.0") != NULL) == (code != NULL));
    }
}

typedef struct reading {
    const char *kernel, *problem;
    double us;
} reading;

static const esp_kernel *kernel_named(const char *name)
{
    for (int i = 0; esp_cuda_kernels[i] != NULL; i++) {
        if (strcmp(esp_cuda_kernels[i]->name, name) == 0) {
            return esp_cuda_kernels[i];
        }
    }
    return NULL;
}

/* Predictions of kernels for any GPU beside what an H100 took, with tiles of panels that are few an
 * H200, so that they rank them. */
static void kernels_for_any_gpu(test_run *run)
{
    static const char blocks[] = "matmul_bsr_f16_f16__cuda_sm80_128x256";
    static const char tall[] = "matmul_panel_f16_f16__cuda_sm80_128x128";
    static const char wide[] = "matmul_panel_f16_f16__cuda_sm80_64x256";
    static const char small[] = "matmul_panel_f16_f16__cuda_sm80_64x128";
    static const char whole[] = "matmul_panel_f16_f16__cuda_sm80_whole_128x128";
    static const reading read[] = {
        {blocks, "matmul/block:16x16@0.9/f16/4096x4096x4096", 242},
        {blocks, "matmul/block:32x32@0.9/f16/4096x4096x4096", 220},
        {blocks, "matmul/block:64x64@0.8/f16/4096x4096x4096", 211},
        {blocks, "matmul/block:64x64@0.9/f16/4096x4096x4096", 151},
        {blocks, "matmul/block:128x128@0.8/f16/4096x4096x4096", 173},
        {blocks, "matmul/block:64x64@0.8/f16/4096x4096x512", 56},
        {blocks, "matmul/block:64x64@0.9/f16/4096x1024x50432/ep:bias+gelu", 1624},
        {tall, "matmul/128:2:8/f16/768x768x200/ep:bias", 14.0},
        {tall, "matmul/64:2:16/f16/768x768x200/ep:bias", 10.3},
        {wide, "matmul/128:2:8/f16/768x768x200/ep:bias", 17.6},
        {wide, "matmul/64:2:16/f16/768x768x200/ep:bias", 12.1},
        {small, "matmul/128:2:8/f16/768x768x200/ep:bias", 10.9},
        {small, "matmul/64:2:16/f16/768x768x200/ep:bias", 8.1},
        {small, "matmul/128:2:8/f16/4096x4096x4096", 202},
        {whole, "matmul/2:4/f16/4096x4096x512", 46.2}};
    cuda_state state = {.facts = {.major = 8, .multiprocessors = 132, .gb_per_s = 3350}};
    esp_device device = {.backend = &esp_cuda_backend, .state = &state};
    for (int i = 0; i < ESP_COUNT(read); i++) {
        esp_matmul_problem problem;
        const esp_kernel *kernel = kernel_named(read[i].kernel);
        test_sub(run, "%s %s", read[i].kernel, read[i].problem);
        REQUIRE_OK(esp_matmul_problem_parse(read[i].problem, &problem, error));
        REQUIRE(kernel != NULL && kernel->why_not(kernel, &device, &problem) == NULL);
        double us = kernel->score_us(kernel, &device, &problem);
        CHECK(fabs(us - read[i].us) <= 0.15 * read[i].us);
    }
}

/* The fastest of an H100 at products of models, cuBLASLt left out. What is chosen takes at most a
 * tenth longer than the fastest, and what it was said to take is true to a quarter. */
static void as_an_h100_read(test_run *run)
{
    static const struct {
        const char *problem;
        struct {
            const char *kernel;
            double us;
        } fastest[6];
    } rows[] = {
        {"matmul/2:4/f16/768x768x256/ep:bias+residual",
         {{"panel/sm90_whole_128x128", 5.2},
          {"dense/sm90_128x128", 5.2},
          {"dense/sm90_128x256", 6.4},
          {"panel/sm90_whole_128x256", 7.1},
          {"dense/sm90_split_128x64", 3.3},
          {"dense/sm90_split_128x128", 4.1}}},
        {"matmul/2:4/f16/1024x1024x256/ep:bias+residual",
         {{"panel/sm90_whole_128x128", 6.1},
          {"dense/sm90_128x128", 6.3},
          {"panel/sm90_whole_128x256", 7.2},
          {"dense/sm90_128x256", 8.1},
          {"dense/sm90_split_128x64", 4.8},
          {"dense/sm90_split_128x128", 4.9}}},
        {"matmul/2:4/f16/3072x768x512/ep:bias+gelu",
         {{"panel/sm90_whole_128x128", 7.8},
          {"panel/sm90_whole_128x256", 8.1},
          {"dense/sm90_128x256", 9.7},
          {"dense/sm90_128x128", 9.8},
          {"dense/sm90_split_128x128", 9.0},
          {"dense/sm90_split_128x64", 9.9}}},
        {"matmul/2:4/f16/1024x4096x512/ep:bias+residual",
         {{"panel/sm90_whole_128x128", 13.3},
          {"dense/sm90_128x128", 16.4},
          {"panel/sm90_whole_128x256", 17.4},
          {"dense/sm90_128x256", 18.0},
          {"dense/sm90_split_128x64", 12.9},
          {"dense/sm90_split_128x128", 14.6}}},
        {"matmul/2:4/f16/2304x768x1600/ep:bias",
         {{"panel/sm90_whole_128x256", 9.9},
          {"panel/sm90_whole_128x128", 11.5},
          {"dense/sm90_128x256", 12.9},
          {"dense/sm90_128x128", 13.9}}},
        {"matmul/2:4/f16/3072x1024x2048/ep:bias",
         {{"panel/sm90_whole_128x256", 17.2},
          {"panel/sm90_whole_128x128", 18.9},
          {"dense/sm90_128x256", 22.7},
          {"dense/sm90_128x128", 23.8}}},
        {"matmul/128:2:8/f16/2304x768x256/ep:bias",
         {{"panel/sm90_128x256", 5.4},
          {"panel/sm90_128x128", 5.4},
          {"panel/sm90_64x256", 5.4},
          {"panel/sm90_64x512", 6.0},
          {"dense/sm90_split_128x64", 5.4},
          {"dense/sm90_split_128x128", 5.8}}},
        {"matmul/128:2:8/f16/1024x4096x256/ep:bias+residual",
         {{"panel/sm90_128x128", 10.9},
          {"dense/sm90_128x128", 12.2},
          {"panel/sm90_64x256", 13.7},
          {"panel/sm90_128x256", 14.9},
          {"dense/sm90_split_128x128", 10.0},
          {"dense/sm90_split_128x64", 12.1}}},
        {"matmul/128:2:8/f16/4096x1024x512/ep:bias+gelu",
         {{"panel/sm90_128x256", 8.8},
          {"panel/sm90_128x128", 8.8},
          {"panel/sm90_64x512", 9.4},
          {"panel/sm90_64x256", 10.6}}},
        {"matmul/128:2:8/f16/3072x768x12800/ep:bias+gelu",
         {{"panel/sm90_128x256", 71.3},
          {"panel/sm90_64x256", 84.0},
          {"panel/sm90_128x128", 85.3},
          {"panel/sm90_64x512", 89.3}}},
        {"matmul/128:2:8/f16/1024x4096x12800/ep:bias+residual",
         {{"panel/sm90_128x256", 98.1},
          {"panel/sm90_64x512", 122.8},
          {"panel/sm90_128x128", 123.5},
          {"panel/sm90_64x256", 127.8}}},
        {"matmul/64:2:8/f16/1024x4096x512/ep:bias+residual",
         {{"panel/sm90_64x256", 13.4},
          {"panel/sm90_128x256", 13.7},
          {"panel/sm90_128x128", 14.5},
          {"panel/sm90_64x512", 15.0},
          {"dense/sm90_split_128x64", 12.9},
          {"dense/sm90_split_128x128", 14.6}}},
        {"matmul/64:2:8/f16/3072x1024x12800/ep:bias",
         {{"panel/sm90_64x512", 85.5},
          {"panel/sm90_64x256", 87.3},
          {"panel/sm90_128x256", 110.8},
          {"dense/sm90_128x256", 117.5}}},
        {"matmul/128:2:5/f16/4096x1024x128/ep:bias+gelu",
         {{"panel/sm90_spread_128x128", 8.2},
          {"dense/sm90_128x128", 8.7},
          {"panel/sm90_spread_128x256", 9.1},
          {"panel/sm90_128x256", 9.1},
          {"dense/sm90_split_128x64", 7.3},
          {"dense/sm90_split_128x128", 8.1}}},
        {"matmul/128:2:5/f16/768x3072x1600/ep:bias+residual",
         {{"dense/sm90_128x128", 18.6},
          {"panel/sm90_128x128", 19.6},
          {"panel/sm90_spread_128x128", 20.0},
          {"dense/sm90_128x256", 21.5}}},
        {"matmul/64:2:5/f16/3072x768x12800/ep:bias+gelu",
         {{"panel/sm90_spread_128x256", 105.8},
          {"dense/sm90_128x256", 111.9},
          {"panel/sm90_spread_128x128", 119.6},
          {"dense/sm90_128x128", 120.1}}},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        esp_plan plan;
        double us = 0, least = 1e9;
        test_sub(run, "%s", rows[i].problem);
        choose(run, rows[i].problem, ESP_FORM_SPARSE | ESP_FORM_DENSE | ESP_FORM_SPREAD, &plan);
        for (int k = 0; k < ESP_COUNT(rows[i].fastest) && rows[i].fastest[k].kernel != NULL; k++) {
            char name[128];
            const char *text = rows[i].fastest[k].kernel, *slash = strchr(text, '/');
            snprintf(name, sizeof name, "matmul_%.*s_f16_f16__cuda_%s", (int)(slash - text), text,
                     slash + 1);
            const esp_kernel *kernel = kernel_named(name);
            REQUIRE(kernel != NULL);
            double among = rows[i].fastest[k].us + kernel->among_us;
            least = ESP_MIN(least, among);
            us = kernel == plan.kernel ? among : us;
        }
        CHECK(us > 0 && us <= 1.1 * least);
        CHECK(fabs(plan.reason.us - us) <= 0.25 * us);
    }
}

/* Whole models of one image or text on an H100, all layers sparse beside all dense, ms: what wins
 * is chosen layer by layer. */
static void small_models_on_hopper(test_run *run)
{
    static const struct {
        const char *pattern;
        int hidden, tokens;
        double sparse_ms, dense_ms;
    } rows[] = {
        {"2:4", 384, 256, 0.467, 0.452},    /* DeiT-small; its dense form is faster yet */
        {"64:2:8", 384, 256, 0.462, 0.452}, /* likewise */
        {"2:4", 768, 256, 0.563, 0.490},    /* DeiT-base */
        {"64:2:8", 768, 256, 0.629, 0.490},  {"128:2:5", 768, 256, 0.627, 0.490},
        {"2:4", 1024, 256, 1.301, 1.087}, /* ViT-large */
        {"64:2:8", 1024, 256, 1.377, 1.087}, {"128:2:5", 1024, 128, 1.338, 1.182} /* BERT */};
    static const char *const ends[] = {"bias", "bias+residual", "bias+gelu", "bias+residual"};
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        for (int layer = 0; layer < ESP_COUNT(ends); layer++) {
            const int hidden = rows[i].hidden, outs[] = {3, 1, 4, 1};
            char text[160];
            esp_plan plan;
            snprintf(text, sizeof text, "matmul/%s/f16/%dx%dx%d/ep:%s", rows[i].pattern,
                     outs[layer] * hidden, layer == 3 ? 4 * hidden : hidden, rows[i].tokens,
                     ends[layer]);
            test_sub(run, "%s", text);
            choose(run, text, ESP_FORM_SPARSE | ESP_FORM_DENSE | ESP_FORM_SPREAD, &plan);
            CHECK(plan.runs_dense == (rows[i].dense_ms < rows[i].sparse_ms));
        }
    }
}

#else
static void small_models_on_hopper(test_run *run)
{
    test_skip(run, "built without CUDA");
}
static void few_dense_on_hopper(test_run *run)
{
    test_skip(run, "built without CUDA");
}
static void as_an_h100_read(test_run *run)
{
    test_skip(run, "built without CUDA");
}
static void blocks_on_hopper(test_run *run)
{
    test_skip(run, "built without CUDA");
}
static void panels_on_hopper(test_run *run)
{
    test_skip(run, "built without CUDA");
}
static void few_tokens_on_hopper(test_run *run)
{
    test_skip(run, "built without CUDA");
}
static void blocks_beside_dense(test_run *run)
{
    test_skip(run, "built without CUDA");
}
static void kernels_for_any_gpu(test_run *run)
{
    test_skip(run, "built without CUDA");
}
static void gpus_of_any_age(test_run *run)
{
    test_skip(run, "built without CUDA");
}
#endif

static const test_case cases[] = {{"blocks_on_hopper", blocks_on_hopper},
                                  {"panels_on_hopper", panels_on_hopper},
                                  {"few_tokens_on_hopper", few_tokens_on_hopper},
                                  {"blocks_beside_dense", blocks_beside_dense},
                                  {"kernels_for_any_gpu", kernels_for_any_gpu},
                                  {"as_an_h100_read", as_an_h100_read},
                                  {"small_models_on_hopper", small_models_on_hopper},
                                  {"few_dense_on_hopper", few_dense_on_hopper},
                                  {"gpus_of_any_age", gpus_of_any_age}};
TEST_MAIN(cases)
