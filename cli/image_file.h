/* Image files: JPEG and PNG to 8-bit RGB. */
#ifndef CLI_IMAGE_FILE_H
#define CLI_IMAGE_FILE_H

#include "cli.h"

typedef struct image_file {
    esp_image image; /* pixels are this object's */
} image_file;

/* Refuses what is no whole JPEG or PNG, or larger than the library takes: "image.*". Alpha is
 * dropped, grey and palettes become RGB, 16 bits are cut to the upper 8, photos are turned as their
 * Exif data say; CMYK is refused. */
ESP_MUST_CHECK esp_status image_file_read(const char *path, image_file *file, esp_error *error);
void image_file_free(image_file *file);

/* ---- image_exif.c ---- */

/* 1 to 8, as Exif counts them; 1 (as it is) when there is none. data: from "II" or "MM" on. */
int exif_orientation(const unsigned char *data, size_t bytes);
ESP_MUST_CHECK esp_status image_turn(image_file *file, int orientation, esp_error *error);

#endif
