/* gpu_calibrate OUT IN TOKENS PATTERN [METHODS]: seconds of each part of calibrating one linear
 * layer on cuda:0: second moments of TOKENS tokens, the inverse, a product, an error, masks by the
 * methods (sparsegpt,obs,joint) and the refit of each. Weights and inputs are random, neighbouring
 * inputs correlated. */
#include <stdio.h>
#include <stdlib.h>

#include "op/op.h"
#include "prune/prune.h"

enum { BATCH = 2048 };

typedef struct bench {
    esp_context *context;
    esp_device *device;
    esp_algebra *algebra;
    esp_device_algebra *gpu;
    int64_t out, in, tokens;
    esp_pattern pattern;
    double *weights, *gram, *inverse, *goal, *result;
    double since;
} bench;

static void need(esp_status status, const esp_error *error)
{
    if (status != ESP_OK) {
        fprintf(stderr, "%s: %s\n", esp_status_name(status), error->message);
        exit(1);
    }
}

static void tell(bench *b, const char *what)
{
    double now = esp_seconds();
    printf("%-24s %8.3f s\n", what, now - b->since);
    fflush(stdout);
    b->since = esp_seconds();
}

static void *memory(int64_t rows, int64_t columns, size_t width)
{
    void *made = malloc((size_t)(rows * columns) * width);
    if (made == NULL) {
        fprintf(stderr, "no memory for %lld x %lld\n", (long long)rows, (long long)columns);
        exit(1);
    }
    return made;
}

static double *matrix(int64_t rows, int64_t columns)
{
    return memory(rows, columns, sizeof(double));
}

static float draw(esp_random *random)
{
    return (float)esp_random_below(random, 1u << 24) / (float)(1u << 23) - 1;
}

static void sum_moments(bench *b)
{
    esp_error error;
    esp_random random;
    float *x = memory(b->in, BATCH, sizeof *x);
    esp_random_seed(&random, 1);
    for (int64_t i = 0; i < b->in * BATCH; i++) {
        x[i] = draw(&random) + (i >= BATCH ? 0.8f * x[i - BATCH] : 0);
    }
    const esp_token_rows rows = {.data = x, .type = ESP_F32, .features = b->in, .stride = BATCH};
    need(b->gpu->ops->hold(b->gpu, b->gram, b->in * b->in, true, &error), &error);
    b->since = esp_seconds();
    for (int64_t done = 0; done < b->tokens; done += BATCH) {
        need(b->gpu->ops->add_gram(b->gpu, &rows, &rows, BATCH, b->gram, &error), &error);
    }
    need(b->gpu->ops->mirror(b->gpu, b->gram, b->in, &error), &error);
    need(b->gpu->ops->fetch(b->gpu, b->gram, &error), &error);
    tell(b, "moments");
    double trace = 0;
    for (int64_t j = 0; j < b->in; j++) {
        trace += b->gram[j * b->in + j];
    }
    for (int64_t j = 0; j < b->in; j++) {
        b->gram[j * b->in + j] += 0.01 * trace / (double)b->in;
    }
    need(b->gpu->ops->hold(b->gpu, b->gram, b->in * b->in, false, &error), &error);
    tell(b, "damping and sending");
    free(x);
}

static void prepare(bench *b)
{
    esp_error error;
    esp_random random;
    bool definite = false;
    double energy = 0;
    b->weights = matrix(b->out, b->in);
    b->goal = matrix(b->out, b->in);
    b->result = matrix(b->out, b->in);
    b->gram = matrix(b->in, b->in);
    b->inverse = matrix(b->in, b->in);
    esp_random_seed(&random, 2);
    for (int64_t i = 0; i < b->out * b->in; i++) {
        b->weights[i] = (double)draw(&random);
    }
    sum_moments(b);
    need(b->gpu->ops->invert(b->gpu, b->gram, b->in, b->inverse, &definite, &error), &error);
    tell(b, definite ? "inverse" : "inverse: there is none");
    const esp_algebra_product product = {.rows = b->out,
                                         .columns = b->in,
                                         .depth = b->in,
                                         .alpha = 1,
                                         .a = b->weights,
                                         .a_stride = b->in,
                                         .b = b->gram,
                                         .b_stride = b->in,
                                         .c = b->goal,
                                         .c_stride = b->in};
    need(b->gpu->ops->multiply(b->gpu, &product, &error), &error);
    tell(b, "a product");
    const esp_layer_inputs inputs = {.in = b->in, .tokens = b->tokens, .gram = b->gram};
    need(esp_layer_energy(b->algebra, &inputs, b->out, b->weights, &energy, &error), &error);
    tell(b, "an error");
}

static void check_method(bench *b, const char *method)
{
    bool takes = strcmp(method, "joint") == 0       ? esp_joint_takes(&b->pattern)
                 : strcmp(method, "obs") == 0       ? esp_panel_obs_takes(&b->pattern)
                 : strcmp(method, "sparsegpt") == 0 ? esp_sparse_gpt_chooses(&b->pattern)
                                                    : false;
    if (!takes) {
        fprintf(stderr,
                "gpu_calibrate: '%s' makes no masks of this pattern; sparsegpt makes N:M, 2:4 and "
                "V:2:M, joint panels and 2:4, obs panels\n",
                method);
        exit(2);
    }
}

static void prune(bench *b, const char *method)
{
    const esp_mask_options options = {.score = ESP_SCORE_ABS};
    const esp_layer_inputs inputs = {.in = b->in, .tokens = b->tokens, .gram = b->gram};
    esp_error error;
    esp_mask *mask = NULL;
    esp_refit_report refit;
    double all = 1, left[2] = {0, 0};
    memcpy(b->result, b->weights, (size_t)(b->out * b->in) * sizeof *b->result);
    b->since = esp_seconds();
    need(strcmp(method, "joint") == 0 ? esp_joint_panels(b->algebra, &b->pattern, b->out, b->in,
                                                         b->inverse, b->result, &mask, &error)
         : strcmp(method, "obs") == 0
             ? esp_panel_obs(b->algebra, &b->pattern, b->out, b->in, b->inverse, b->result, &mask,
                             &error)
             : esp_sparse_gpt_of(b->algebra, &b->pattern, &options, b->out, b->in, b->inverse,
                                 b->result, &mask, &error),
         &error);
    tell(b, method);
    need(esp_layer_energy(b->algebra, &inputs, b->out, b->weights, &all, &error), &error);
    for (int i = 0; i < 2; i++) {
        need(esp_layer_error(b->algebra, &inputs, b->out, b->result, b->weights, &left[i], &error),
             &error);
        if (i == 0) {
            b->since = esp_seconds();
            need(esp_refit(b->algebra, &inputs, mask, b->goal, b->result, NULL, &refit, &error),
                 &error);
            tell(b, "refit");
        }
    }
    printf("  error %.5f, %.5f after %lld steps of the refit, residual %.2g\n", left[0] / all,
           left[1] / all, (long long)refit.iterations, refit.residual);
    esp_mask_free(mask);
}

static void each_method(bench *b, const char *methods, void (*body)(bench *, const char *))
{
    char list[64];
    snprintf(list, sizeof list, "%s", methods);
    for (char *method = strtok(list, ","); method != NULL; method = strtok(NULL, ",")) {
        body(b, method);
    }
}

int main(int argc, char **argv)
{
    bench b = {.out = argc > 1 ? atoll(argv[1]) : 0,
               .in = argc > 2 ? atoll(argv[2]) : 0,
               .tokens = argc > 3 ? atoll(argv[3]) : 0};
    const char *methods = argc > 5 ? argv[5] : "sparsegpt";
    esp_error error;
    if ((argc != 5 && argc != 6) || b.out < 1 || b.in < 1 || b.tokens < 1) {
        fprintf(stderr, "usage: gpu_calibrate OUT IN TOKENS PATTERN [sparsegpt,obs,joint]\n");
        return 2;
    }
    need(esp_context_create(NULL, &b.context, &error), &error);
    need(esp_pattern_parse(argv[4], &b.pattern, &error), &error);
    each_method(&b, methods, check_method);
    need(esp_device_open(b.context, "cuda:0", &b.device, &error), &error);
    need(esp_algebra_open(b.context, &b.algebra, &error), &error);
    need(b.device->backend->algebra_open(b.device, &b.gpu, &error), &error);
    esp_algebra_set_device(b.algebra, b.gpu);
    printf("%s %lldx%lld, %lld tokens, by %s\n", argv[4], (long long)b.out, (long long)b.in,
           (long long)b.tokens, b.gpu->name);
    prepare(&b);
    each_method(&b, methods, prune);
    return 0;
}
