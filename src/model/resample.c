/* Resizing by convolution with a filter that widens with the reduction, so that nothing is skipped
 * over (antialiasing); first across, then down. Weights are rounded to 22 bits and each direction's
 * result to 8, as Pillow's Resample.c does: models were trained and are judged on such pixels, and
 * the results are equal to the bit. */
#include <math.h>

#include "model/resample.h"

#define WEIGHT_BITS 22
#define CHANNELS 3

/* ---- weights ---- */

/* For each place of the result: where its samples begin, how many there are, and their weights. */
typedef struct filter_bank {
    int64_t *first, *count; /* [size] */
    int32_t *weights;       /* [size][most] */
    int64_t size, most;
} filter_bank;

static double triangle(double x)
{
    return fabs(x) < 1 ? 1 - fabs(x) : 0;
}

/* Keys' cubic convolution with a = -0.5. */
static double cubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    return x < 1   ? ((a + 2) * x - (a + 3)) * x * x + 1
           : x < 2 ? (((x - 5) * x + 8) * x - 4) * a
                   : 0;
}

static void fill_place(filter_bank *bank, esp_resample resample, double scale, int64_t from,
                       int64_t place, double *exact)
{
    double wide = ESP_MAX(scale, 1.0), center = ((double)place + 0.5) * scale;
    double support = (resample == ESP_RESAMPLE_BICUBIC ? 2 : 1) * wide, sum = 0;
    int64_t first = ESP_MAX((int64_t)(center - support + 0.5), 0);
    int64_t count = ESP_MIN((int64_t)(center + support + 0.5), from) - first;
    for (int64_t i = 0; i < count; i++) {
        double x = ((double)(i + first) - center + 0.5) / wide;
        exact[i] = resample == ESP_RESAMPLE_BICUBIC ? cubic(x) : triangle(x);
        sum += exact[i];
    }
    for (int64_t i = 0; i < count; i++) {
        double weight = exact[i] / (sum != 0 ? sum : 1) * (1 << WEIGHT_BITS);
        bank->weights[place * bank->most + i] = (int32_t)(weight + (weight < 0 ? -0.5 : 0.5));
    }
    bank->first[place] = first;
    bank->count[place] = count;
}

static void free_bank(esp_context *context, filter_bank *bank)
{
    esp_release(context, bank->first);
    esp_release(context, bank->count);
    esp_release(context, bank->weights);
}

static esp_status make_bank(esp_context *context, esp_resample resample, int64_t from, int64_t to,
                            filter_bank *bank, esp_error *error)
{
    double scale = (double)from / (double)to;
    double support = (resample == ESP_RESAMPLE_BICUBIC ? 2 : 1) * ESP_MAX(scale, 1.0);
    size_t places = (size_t)to, weights;
    *bank = (filter_bank){.size = to, .most = 2 * (int64_t)ceil(support) + 1};
    if (!esp_mul_size(places, (size_t)bank->most, &weights)) {
        return esp_fail_memory(error, SIZE_MAX, "resizing an image");
    }
    double *exact = esp_alloc_array(context, (size_t)bank->most, sizeof *exact);
    bank->first = esp_alloc_array(context, places, sizeof *bank->first);
    bank->count = esp_alloc_array(context, places, sizeof *bank->count);
    bank->weights = esp_alloc_array(context, weights, sizeof *bank->weights);
    bool there =
        exact != NULL && bank->first != NULL && bank->count != NULL && bank->weights != NULL;
    for (int64_t place = 0; there && place < to; place++) {
        fill_place(bank, resample, scale, from, place, exact);
    }
    esp_release(context, exact);
    if (!there) {
        free_bank(context, bank);
        return esp_fail_memory(error, weights * sizeof *bank->weights, "resizing an image");
    }
    return ESP_OK;
}

/* ---- one direction ---- */

typedef struct pass_job {
    const filter_bank *bank;
    const uint8_t *from;
    uint8_t *to;
    int64_t width, to_width; /* pixels of a row before and after; equal when going down */
    bool down;
} pass_job;

static uint8_t round_to_byte(int64_t sum)
{
    int64_t value = sum >> WEIGHT_BITS;
    return (uint8_t)ESP_MIN(ESP_MAX(value, 0), 255);
}

/* Rows of the result. */
static void pass_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const pass_job *job = user;
    const filter_bank *bank = job->bank;
    int64_t step = job->down ? job->width * CHANNELS : CHANNELS; /* between samples */
    for (int64_t row = begin; row < end; row++) {
        for (int64_t column = 0; column < job->to_width; column++) {
            int64_t place = job->down ? row : column;
            const int32_t *weights = bank->weights + place * bank->most;
            const uint8_t *from =
                job->down ? job->from + (bank->first[place] * job->width + column) * CHANNELS
                          : job->from + (row * job->width + bank->first[place]) * CHANNELS;
            int64_t sums[CHANNELS] = {1 << (WEIGHT_BITS - 1), 1 << (WEIGHT_BITS - 1),
                                      1 << (WEIGHT_BITS - 1)};
            for (int64_t i = 0; i < bank->count[place]; i++) {
                for (int c = 0; c < CHANNELS; c++) {
                    sums[c] += (int64_t)weights[i] * from[i * step + c];
                }
            }
            for (int c = 0; c < CHANNELS; c++) {
                job->to[(row * job->to_width + column) * CHANNELS + c] = round_to_byte(sums[c]);
            }
        }
    }
}

static uint8_t *take_pixels(esp_context *context, int64_t width, int64_t height, esp_error *error,
                            esp_status *status)
{
    size_t bytes;
    uint8_t *pixels = NULL;
    if (esp_mul_size((size_t)width * CHANNELS, (size_t)height, &bytes)) {
        pixels = esp_alloc(context, bytes);
    }
    *status = pixels != NULL
                  ? ESP_OK
                  : esp_fail_memory(error, (size_t)(width * height) * CHANNELS, "an image");
    return pixels;
}

static esp_status resize_one_way(esp_context *context, esp_resample resample, const uint8_t *from,
                                 int64_t width, int64_t height, bool down, int64_t size,
                                 uint8_t **pixels, esp_error *error)
{
    filter_bank bank;
    esp_status status;
    int64_t to_width = down ? width : size, to_height = down ? size : height;
    ESP_TRY(make_bank(context, resample, down ? height : width, size, &bank, error));
    *pixels = take_pixels(context, to_width, to_height, error, &status);
    if (status == ESP_OK) {
        pass_job job = {.bank = &bank,
                        .from = from,
                        .to = *pixels,
                        .width = width,
                        .to_width = to_width,
                        .down = down};
        esp_parallel_for(context, to_height, 1 + 65536 / (to_width * bank.most), pass_rows, &job);
    }
    free_bank(context, &bank);
    return status;
}

esp_status esp_image_resize(esp_context *context, const esp_image *image, esp_resample resample,
                            int64_t width, int64_t height, uint8_t **pixels, esp_error *error)
{
    esp_status status;
    uint8_t *across = NULL, *result = NULL;
    if (image->width == width && image->height == height) {
        result = take_pixels(context, width, height, error, &status);
        ESP_TRY(status);
        memcpy(result, image->pixels, (size_t)(width * height) * CHANNELS);
        *pixels = result;
        return ESP_OK;
    }
    if (image->width != width) {
        ESP_TRY(resize_one_way(context, resample, image->pixels, image->width, image->height, false,
                               width, &across, error));
    }
    if (image->height == height) {
        *pixels = across;
        return ESP_OK;
    }
    status = resize_one_way(context, resample, across != NULL ? across : image->pixels, width,
                            image->height, true, height, &result, error);
    esp_release(context, across);
    ESP_TRY(status);
    *pixels = result;
    return ESP_OK;
}
