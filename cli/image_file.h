/* Image files: JPEG and PNG to 8-bit RGB. */
#ifndef CLI_IMAGE_FILE_H
#define CLI_IMAGE_FILE_H

#include "cli.h"

typedef struct image_file {
    esp_image image; /* pixels are this object's */
} image_file;

/* Refuses what is no whole JPEG or PNG, or larger than the library takes: "image.*". Alpha is
 * dropped, grey and palettes become RGB, 16 bits are cut to the upper 8; CMYK is refused. */
ESP_MUST_CHECK esp_status image_file_read(const char *path, image_file *file, esp_error *error);
void image_file_free(image_file *file);

#endif
