/* Which way up a photo is to be shown: the orientation that cameras write into Exif data (a TIFF
 * directory), and pixels turned by it. Data that make no sense are passed over, as viewers do. */
#include <stdlib.h>
#include <string.h>

#include "image_file.h"

#define ORIENTATION 0x0112
#define SHORT_VALUE 3

typedef struct tiff {
    const unsigned char *data;
    size_t bytes;
    bool little;
} tiff;

static uint32_t number_at(const tiff *from, size_t at, int width)
{
    uint32_t value = 0;
    for (int i = 0; i < width; i++) {
        int place = from->little ? width - 1 - i : i;
        value = value << 8 | from->data[at + (size_t)place];
    }
    return value;
}

int exif_orientation(const unsigned char *data, size_t bytes)
{
    tiff from = {data, bytes, bytes > 0 && data[0] == 'I'};
    bool known = bytes >= 8 && (memcmp(data, "II", 2) == 0 || memcmp(data, "MM", 2) == 0);
    if (!known || number_at(&from, 2, 2) != 42) {
        return 1;
    }
    size_t at = number_at(&from, 4, 4);
    if (at > bytes || bytes - at < 2) {
        return 1;
    }
    size_t count = number_at(&from, at, 2);
    for (at += 2; count > 0 && bytes - at >= 12; at += 12, count--) {
        if (number_at(&from, at, 2) == ORIENTATION && number_at(&from, at + 2, 2) == SHORT_VALUE) {
            uint32_t value = number_at(&from, at + 8, 2);
            return value >= 1 && value <= 8 ? (int)value : 1;
        }
    }
    return 1;
}

/* Pixel (x, y) of the picture as shown lies here in the one as stored. */
static int64_t place_in_stored(int orientation, int64_t width, int64_t height, int64_t x, int64_t y)
{
    bool turned = orientation >= 5; /* width and height change places */
    int64_t column = turned ? y : x, row = turned ? x : y;
    bool mirrors_columns =
        orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool mirrors_rows =
        orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    column = mirrors_columns ? width - 1 - column : column;
    row = mirrors_rows ? height - 1 - row : row;
    return row * width + column;
}

esp_status image_turn(image_file *file, int orientation, esp_error *error)
{
    const esp_image *image = &file->image;
    int64_t width = image->width, height = image->height;
    if (orientation == 1) {
        return ESP_OK;
    }
    int64_t new_width = orientation >= 5 ? height : width;
    int64_t new_height = orientation >= 5 ? width : height;
    unsigned char *pixels = malloc((size_t)(width * height) * 3);
    if (pixels == NULL) {
        return cli_fail_memory(error, "an image");
    }
    for (int64_t y = 0; y < new_height; y++) {
        for (int64_t x = 0; x < new_width; x++) {
            memcpy(pixels + (y * new_width + x) * 3,
                   image->pixels + place_in_stored(orientation, width, height, x, y) * 3, 3);
        }
    }
    image_file_free(file);
    file->image = (esp_image){new_width, new_height, pixels};
    return ESP_OK;
}
