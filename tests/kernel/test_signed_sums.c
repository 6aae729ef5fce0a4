/* The check of large products by signed sums of their rows passes right ones, whatever they are
 * rounded to, and finds a single wrong row wherever it is. */
#include "product.h"

#define WORK 1e6 /* of some tens of millions: tens of rows in a block */

static const char *const texts[] = {"matmul/2:4/f16/300x200x600",
                                    "matmul/64:2:8/bf16/301x400x260/x:tok/o:f32",
                                    "matmul/dense/f32/290x128x300/y:tok/o:f16/ep:scale+bias",
                                    "matmul/block:16x16@0.7/f16/300x260x240/o:bf16/ep:residual",
                                    "matmul/16:2:5/f16/300x300x256/ep:scale+bias+residual"};

/* Whether it finds that row `wrong` holds the results of another. */
static bool finds(const signed_sums *sums, const product *p, float *actual, int64_t wrong,
                  int64_t other)
{
    int64_t tokens = p->problem.tokens;
    size_t bytes = (size_t)tokens * sizeof(float);
    float *row = actual + wrong * tokens, *right = malloc(bytes);
    memcpy(right, row, bytes);
    if (other >= 0) {
        memcpy(row, actual + other * tokens, bytes);
    } else {
        memset(row, 0, bytes);
    }
    signed_misfit found = signed_sums_compare(sums, p, actual);
    memcpy(row, right, bytes);
    free(right);
    return found.excess > 1 && found.first <= wrong && wrong <= found.last;
}

static void one_wrong_row(test_run *run)
{
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        test_sub(run, "%s", texts[i]);
        esp_context *context = test_context(run, 2);
        esp_matmul_problem problem = problem_of(run, texts[i]);
        product p = product_make(run, context, &problem, test_seed(run) + (uint64_t)i, REALS,
                                 i % 2 == 0, true);
        float *actual = result_of(&p);
        signed_sums sums = signed_sums_make(run, &p, WORK);
        run_kernel(run, &p, "ref", NULL, actual);
        CHECK(sums.rows >= 9);
        check_signed_sums(run, &sums, &p, actual);
        for (int64_t row = 0; row < p.out_rows; row++) {
            int64_t other = row % 3 == 0 ? -1 : row % 3 == 1 ? row - 1 : (row + 97) % p.out_rows;
            if (!finds(&sums, &p, actual, row, other)) {
                test_fail(run, __FILE__, __LINE__, "row %lld as row %lld is not found",
                          (long long)row, (long long)other);
            }
        }
        signed_sums_free(&sums);
        free(actual);
        product_free(&p);
        test_context_free(run, context);
    }
}

/* Numbers that are not finite are found by themselves. */
static void not_finite(test_run *run)
{
    static const float wrong[] = {NAN, INFINITY, -INFINITY};
    esp_context *context = test_context(run, 2);
    esp_matmul_problem problem = problem_of(run, texts[0]);
    product p = product_make(run, context, &problem, test_seed(run), REALS, false, false);
    float *actual = result_of(&p);
    signed_sums sums = signed_sums_make(run, &p, WORK);
    run_kernel(run, &p, "ref", NULL, actual);
    for (int i = 0; i < ESP_COUNT(wrong); i++) {
        float *at = &actual[(p.out_rows - 1 - i * 97) * problem.tokens + i], right = *at;
        test_sub(run, "%g", (double)wrong[i]);
        *at = wrong[i];
        CHECK(!(signed_sums_compare(&sums, &p, actual).excess <= 1));
        *at = right;
        CHECK(signed_sums_compare(&sums, &p, actual).excess <= 1);
    }
    signed_sums_free(&sums);
    free(actual);
    product_free(&p);
    test_context_free(run, context);
}

/* Every kernel of the processor, whose sums are rounded in f32. */
static void right_kernels(test_run *run)
{
    esp_context *context = test_context(run, 2);
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        product p = product_make(run, context, &problem, test_seed(run), REALS, false, false);
        float *actual = result_of(&p);
        signed_sums sums = signed_sums_make(run, &p, WORK);
        const char *names[64];
        int count = usable_kernels(context, &problem, names);
        for (int k = 0; k < count; k++) {
            test_sub(run, "%s %s", texts[i], names[k]);
            run_kernel(run, &p, "cpu", names[k], actual);
            check_signed_sums(run, &sums, &p, actual);
        }
        signed_sums_free(&sums);
        free(actual);
        product_free(&p);
    }
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"one_wrong_row", one_wrong_row}, {"not_finite", not_finite}, {"right_kernels", right_kernels}};
TEST_MAIN(cases)
