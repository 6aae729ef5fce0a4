/* Prunes a matrix to 64:2:8, compresses it, multiplies, and compares with loops over what was kept.
 */
#include <espalier/espalier.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { OUT = 128, IN = 256, TOKENS = 8 };
static float w[OUT][IN], x[IN][TOKENS], y[OUT][TOKENS]; /* x and y are feature-major */

static void check(esp_status status, const esp_error *error)
{
    if (status != ESP_OK) {
        fprintf(stderr, "%s [%s]\n", error->message, error->code);
        exit(1);
    }
}

static double largest_difference(void)
{
    double largest = 0;
    for (int o = 0; o < OUT; o++) {
        for (int t = 0; t < TOKENS; t++) {
            double sum = 0;
            for (int i = 0; i < IN; i++) {
                sum += (double)w[o][i] * (double)x[i][t];
            }
            largest = fmax(largest, fabs(sum - (double)y[o][t]));
        }
    }
    return largest;
}

int main(void)
{
    for (int i = 0; i < OUT * IN; i++) {
        w[i / IN][i % IN] = sinf((float)i * 1.7F);
    }
    for (int i = 0; i < IN * TOKENS; i++) {
        x[i / TOKENS][i % TOKENS] = cosf((float)i * 0.9F);
    }
    esp_error error;
    esp_context *context;
    check(esp_context_create(NULL, &context, &error), &error);

    esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {OUT, IN}, .data = w};
    esp_matmul_problem problem;
    esp_mask *mask;
    esp_sparse *sparse;
    check(esp_matmul_problem_parse("matmul/64:2:8/f32/128x256x8", &problem, &error), &error);
    check(esp_prune_mask(context, &dense, &problem.pattern, NULL, &mask, NULL, &error), &error);
    check(esp_sparse_encode(context, &problem.pattern, &dense, mask, &sparse, &error), &error);
    check(esp_mask_apply(mask, &dense, &error), &error);

    esp_device *device;
    esp_packed *packed;
    esp_plan *plan;
    check(esp_device_open(context, "cpu", &device, &error), &error);
    check(esp_pack(device, sparse, &packed, &error), &error);
    check(esp_plan_create(device, &problem, NULL, &plan, &error), &error);
    void *workspace = aligned_alloc(64, (esp_plan_workspace_bytes(plan) + 127) / 64 * 64);
    esp_matmul_args args = {.weight = packed, .x = x, .y = y, .workspace = workspace};
    check(workspace != NULL ? esp_matmul_run(plan, &args, &error) : ESP_OUT_OF_MEMORY, &error);

    double difference = largest_difference();
    printf("%zu -> %zu bytes, %s, largest difference %.2g\n", sizeof w, esp_sparse_bytes(sparse),
           esp_plan_kernel(plan), difference);
    free(workspace);
    esp_plan_free(plan);
    esp_packed_free(packed);
    esp_device_close(device);
    esp_sparse_free(sparse);
    esp_mask_free(mask);
    esp_context_free(context);
    return difference < 1e-4 ? 0 : 1;
}
