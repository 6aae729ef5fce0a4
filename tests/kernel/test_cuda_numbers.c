/* Numbers that are hard on the GPU's kernels of products: sums that cancel, sizes far apart,
 * subnormal numbers, results near the largest that Y holds (product_adversarial.c). Without a GPU
 * every case is skipped; TEST_KERNEL names a part of the kernels to which the run is limited. */
#include "product_device.h"

/* ---- adversarial numbers ---- */

static int index_of(const char *kernel)
{
    int found = 0;
    while (strcmp(esp_kernel_get(found).name, kernel) != 0) {
        found++;
    }
    return found;
}

/* Each kernel that can run the product, against the reference; ran: by its place in the catalogue.
 */
static void compare_bounded_kernels(test_run *run, esp_device *device, esp_context *context,
                                    const char *text, uint64_t seed, bool *ran)
{
    esp_matmul_problem problem = problem_of(run, text);
    const char *names[64];
    int count = usable_on(device, &problem, names);
    product p = product_make(run, context, &problem, seed, ADVERSARIAL, seed % 3 == 0, false);
    float *expected = result_of(&p), *actual = result_of(&p);
    double *sums = magnitudes(run, &p);
    run_kernel(run, &p, "ref", NULL, expected);
    for (int i = 0; i < count; i++) {
        device_layout layout = layout_draw(&p, seed + (uint64_t)i);
        test_sub(run, "%s seed %llu strides %lld %lld %s", text, (unsigned long long)seed,
                 (long long)layout.x_stride, (long long)layout.y_stride, names[i]);
        run_on_gpu(run, &p, device, names[i], &layout, actual);
        compare_bounded(run, &p, sums, expected, actual);
        ran[index_of(names[i])] = true;
    }
    free(sums);
    free(expected);
    free(actual);
    product_free(&p);
}

/* A level of which one record ran is one that the GPU has: all its records must have run. */
static void check_all_ran(test_run *run, const bool *ran)
{
    test_sub(run, "every record");
    for (int i = 0; i < esp_kernel_count(); i++) {
        esp_kernel_info info = esp_kernel_get(i);
        bool has_level = false;
        for (int j = 0; j < esp_kernel_count(); j++) {
            has_level = has_level || (ran[j] && strcmp(esp_kernel_get(j).level, info.level) == 0);
        }
        if (strcmp(info.device, "cuda") == 0 && has_level && !ran[i]) {
            test_fail(run, __FILE__, __LINE__, "no product is for %s", info.name);
        }
    }
}

static void adversarial_numbers(test_run *run)
{
    static const char *const texts[] = {"matmul/dense/f16/192x264x40",
                                        "matmul/dense/bf16/256x520x136/o:f32/ep:bias",
                                        "matmul/dense/f16/64x1000x5/o:f32/ep:silu",
                                        "matmul/dense/bf16/130x336x9/ep:scale+residual",
                                        "matmul/dense/bf16/77x333x33/x:tok/y:tok",
                                        "matmul/dense/f32/130x200x33/ep:scale+bias",
                                        "matmul/dense/f32/64x1000x7/o:f16",
                                        "matmul/2:4/f16/256x520x296",
                                        "matmul/2:4/bf16/130x264x72/x:tok/y:tok",
                                        "matmul/2:4/f16/300x1000x9/ep:scale+residual",
                                        "matmul/2:4/bf16/70x3000x3/o:f32",
                                        "matmul/64:2:8/f16/200x1400x136/ep:bias+relu",
                                        "matmul/128:2:8/bf16/256x600x264",
                                        "matmul/256:2:8/f16/300x1200x8/o:bf16",
                                        "matmul/64:2:16/bf16/256x2000x12/o:f16",
                                        "matmul/64:2:5/f16/256x640x136",
                                        "matmul/128:2:5/bf16/130x333x300/x:tok/o:f32",
                                        "matmul/32:2:8/f16/100x400x300/ep:gelu",
                                        "matmul/5:2:16/bf16/22x4000x33/o:f32",
                                        "matmul/panel:96@0.7/f16/200x700x13/ep:residual",
                                        "matmul/block:64x64@0.7/f16/256x512x264",
                                        "matmul/block:32x32@0.8/bf16/200x700x13/o:f32",
                                        "matmul/block:16x16@0.8/bf16/96x400x33/ep:scale+bias",
                                        "matmul/block:32x64@0.7/f16/128x600x5/ep:bias+gelu"};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    bool *ran = calloc((size_t)esp_kernel_count(), sizeof *ran);
    for (int i = 0; device != NULL && i < 2 * ESP_COUNT(texts); i++) {
        compare_bounded_kernels(run, device, context, texts[i / 2], test_seed(run) + (uint64_t)i,
                                ran);
    }
    if (device != NULL && getenv("TEST_KERNEL") == NULL) {
        check_all_ran(run, ran);
    }
    free(ran);
    esp_device_close(device);
    test_context_free(run, context);
}

static const test_case cases[] = {{"adversarial_numbers", adversarial_numbers}};
TEST_MAIN(cases)
