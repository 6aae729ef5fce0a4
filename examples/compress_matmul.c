/* Prunes a matrix to 64:2:8, compresses it, multiplies, compares with loops over what was kept. */
#include <espalier/espalier.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(call)                                                                                \
    if ((call) != ESP_OK)                                                                          \
    return fprintf(stderr, "%s [%s]\n", error.message, error.code), 1

enum { OUT = 128, IN = 256, TOKENS = 8 };
static float w[OUT][IN], x[IN][TOKENS], y[OUT][TOKENS]; /* x and y are feature-major */

int main(void)
{
    esp_error error = {.message = "out of memory"};
    esp_context *context;
    esp_device *device;
    esp_matmul_problem problem;
    esp_mask *mask;
    esp_sparse *sparse;
    esp_packed *packed;
    esp_plan *plan;
    for (int i = 0; i < OUT * IN; i++) {
        w[i / IN][i % IN] = sinf((float)i * 1.7F);
        x[i / TOKENS % IN][i % TOKENS] = cosf((float)i * 0.9F);
    }
    esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {OUT, IN}, .data = w};
    CHECK(esp_context_create(NULL, &context, &error));
    CHECK(esp_device_open(context, "cpu", &device, &error));
    CHECK(esp_matmul_problem_parse("matmul/64:2:8/f32/128x256x8", &problem, &error));
    CHECK(esp_prune_mask(context, &dense, &problem.pattern, NULL, &mask, NULL, &error));
    CHECK(esp_mask_apply(mask, &dense, &error));
    CHECK(esp_sparse_encode(context, &problem.pattern, &dense, mask, &sparse, &error));
    CHECK(esp_pack(device, sparse, &packed, &error));
    CHECK(esp_plan_create(device, &problem, NULL, &plan, &error));
    void *workspace = aligned_alloc(64, (esp_plan_workspace_bytes(plan) + 127) / 64 * 64);
    esp_matmul_args args = {.weight = packed, .x = x, .y = y, .workspace = workspace};
    CHECK(workspace != NULL ? esp_matmul_run(plan, &args, &error) : ESP_OUT_OF_MEMORY);

    double largest = 0;
    for (int i = 0; i < OUT * TOKENS; i++) {
        double sum = 0;
        for (int k = 0; k < IN; k++) {
            sum += (double)w[i / TOKENS][k] * (double)x[k][i % TOKENS];
        }
        largest = fmax(largest, fabs(sum - (double)y[i / TOKENS][i % TOKENS]));
    }
    printf("%zu -> %zu bytes, %s, largest difference %.2g\n", sizeof w, esp_sparse_bytes(sparse),
           esp_plan_kernel(plan), largest);
    free(workspace);
    esp_plan_free(plan);
    esp_packed_free(packed);
    esp_sparse_free(sparse);
    esp_mask_free(mask);
    esp_device_close(device);
    esp_context_free(context);
    return largest < 1e-4 ? 0 : 1;
}
