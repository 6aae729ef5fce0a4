/* Running a product on a device whose memory is not the host's. */
#ifndef ESP_TESTS_PRODUCT_DEVICE_H
#define ESP_TESTS_PRODUCT_DEVICE_H

#include "product.h"

/* How X and Y lie in device memory, whatever they do in the product: elements between rows and
 * elements by which each begins off a 256-byte boundary. */
typedef struct device_layout {
    int64_t x_stride, y_stride;
    int64_t x_offset, y_offset;
} device_layout;

/* Strides are tight, a multiple of 16 bytes with gaps, or odd; bases aligned or not. */
device_layout layout_draw(const product *p, uint64_t seed);

/* The first GPU that can be used, or NULL after marking the case as skipped. */
esp_device *open_gpu(test_run *run, esp_context *context);

/* result: [out_rows][tokens]. The kernel is forced by name and run twice: both runs must give the
 * same bits. Y, residual and workspace lie between guards, gaps hold NaN. */
void run_on_gpu(test_run *run, const product *p, esp_device *device, const char *kernel,
                const device_layout *layout, float *result);
/* As it, in a model: see esp_around. */
void run_around_on_gpu(test_run *run, const product *p, esp_device *device, const char *kernel,
                       const device_layout *layout, const esp_around *around, float *result);

/* Names of the device's kernels that can run the problem and, where TEST_KERNEL is set, contain it.
 */
int usable_on(const esp_device *device, const esp_matmul_problem *problem, const char *names[64]);

#endif
