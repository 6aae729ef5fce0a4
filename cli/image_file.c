/* Decoding by libjpeg-turbo and libpng. Both leave an error by a long jump to the frame that called
 * them; what they have made by then hangs on the decoder's object, and is freed from there. A file
 * that ends early is an error, though libjpeg would fill the rest with grey. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h> /* before jpeglib.h, which needs FILE */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jpeglib.h>

#include <jerror.h>
#include <png.h>

#include "image_file.h"

#define MOST_FILE_BYTES ((off_t)512 << 20)

typedef struct decoder {
    const char *path;
    const unsigned char *data;
    size_t bytes, at;
    unsigned char *pixels;
    int64_t width, height;
    char why[160];
    bool over_limit;
    int orientation; /* of Exif data */
    esp_error *error;
    jmp_buf jump;
} decoder;

/* ---- shared ---- */

static esp_status damaged(const decoder *from)
{
    return cli_fail(from->error, ESP_BAD_FILE, "image.damaged",
                    "%s: the image is damaged or cut off (%s); get the file again", from->path,
                    from->why);
}

static esp_status too_large(const decoder *from, const char *size)
{
    return cli_fail(from->error, ESP_BAD_FILE, "image.too_large",
                    "%s: %s pixels; 1 to %d each way, %lld in all, are taken", from->path, size,
                    ESP_IMAGE_MAX_SIDE, (long long)ESP_IMAGE_MAX_PIXELS);
}

/* Memory for the pixels, once the size is known. */
static esp_status take_pixels(decoder *from, uint64_t width, uint64_t height)
{
    if (width == 0 || height == 0 || width > ESP_IMAGE_MAX_SIDE || height > ESP_IMAGE_MAX_SIDE ||
        width * height > (uint64_t)ESP_IMAGE_MAX_PIXELS) {
        char size[48];
        snprintf(size, sizeof size, "%llux%llu", (unsigned long long)width,
                 (unsigned long long)height);
        return too_large(from, size);
    }
    from->width = (int64_t)width;
    from->height = (int64_t)height;
    from->pixels = malloc((size_t)width * (size_t)height * 3);
    return from->pixels != NULL ? ESP_OK : cli_fail_memory(from->error, "an image");
}

/* ---- JPEG ---- */

typedef struct jpeg_reader {
    struct jpeg_error_mgr errors; /* first: libjpeg knows it by this address */
    struct jpeg_decompress_struct info;
    decoder *from;
} jpeg_reader;

static void jpeg_failed(j_common_ptr info)
{
    jpeg_reader *reader = (jpeg_reader *)(void *)info->err;
    char message[JMSG_LENGTH_MAX];
    info->err->format_message(info, message);
    snprintf(reader->from->why, sizeof reader->from->why, "%.150s", message);
    longjmp(reader->from->jump, 1);
}

/* Warnings mean that pixels are made up, but for bytes between markers and unknown versions. */
static void jpeg_warned(j_common_ptr info, int level)
{
    int code = info->err->msg_code;
    if (level < 0 && code != JWRN_EXTRANEOUS_DATA && code != JWRN_JFIF_MAJOR &&
        code != JWRN_ADOBE_XFORM) {
        jpeg_failed(info);
    }
}

static void read_exif(const struct jpeg_decompress_struct *info, decoder *from)
{
    static const char magic[] = "Exif\0";
    for (jpeg_saved_marker_ptr marker = info->marker_list; marker != NULL; marker = marker->next) {
        if (marker->marker == JPEG_APP0 + 1 && marker->data_length > sizeof magic &&
            memcmp(marker->data, magic, sizeof magic) == 0) {
            from->orientation =
                exif_orientation(marker->data + sizeof magic, marker->data_length - sizeof magic);
            return;
        }
    }
}

static esp_status jpeg_decode(jpeg_reader *reader)
{
    struct jpeg_decompress_struct *info = &reader->info;
    decoder *from = reader->from;
    jpeg_create_decompress(info);
    jpeg_mem_src(info, from->data, (unsigned long)from->bytes);
    jpeg_save_markers(info, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(info, TRUE);
    read_exif(info, from);
    if (info->jpeg_color_space == JCS_CMYK || info->jpeg_color_space == JCS_YCCK) {
        return cli_fail(from->error, ESP_UNSUPPORTED, "image.unsupported_colours",
                        "%s: a JPEG in CMYK is not supported; convert it to RGB", from->path);
    }
    TRY(take_pixels(from, info->image_width, info->image_height));
    info->out_color_space = JCS_RGB;
    jpeg_start_decompress(info);
    while (info->output_scanline < info->output_height) {
        JSAMPROW row = from->pixels + (size_t)info->output_scanline * (size_t)from->width * 3;
        jpeg_read_scanlines(info, &row, 1);
    }
    jpeg_finish_decompress(info);
    return ESP_OK;
}

static esp_status read_jpeg(decoder *from)
{
    jpeg_reader reader = {.from = from};
    volatile esp_status status = ESP_OK;
    reader.info.err = jpeg_std_error(&reader.errors);
    reader.errors.error_exit = jpeg_failed;
    reader.errors.emit_message = jpeg_warned;
    if (setjmp(from->jump) == 0) {
        status = jpeg_decode(&reader);
    } else {
        status = damaged(from);
    }
    jpeg_destroy_decompress(&reader.info);
    return status;
}

/* ---- PNG ---- */

typedef struct png_reader {
    png_structp png;
    png_infop info;
    decoder *from;
} png_reader;

static void png_failed(png_structp png, png_const_charp message)
{
    decoder *from = png_get_error_ptr(png);
    snprintf(from->why, sizeof from->why, "%.150s", message);
    longjmp(from->jump, 1);
}

/* libpng warns of a size above the limits before it calls the header invalid. */
static void png_warned(png_structp png, png_const_charp message)
{
    decoder *from = png_get_error_ptr(png);
    from->over_limit = from->over_limit || strstr(message, "exceeds user limit") != NULL;
}

static void png_take(png_structp png, png_bytep to, size_t bytes)
{
    decoder *from = png_get_io_ptr(png);
    if (bytes > from->bytes - from->at) {
        png_error(png, "the file ends early");
    }
    memcpy(to, from->data + from->at, bytes);
    from->at += bytes;
}

/* To 8-bit RGB, values as they are: no gamma, alpha dropped. */
static void png_to_rgb(png_reader *reader)
{
    png_set_palette_to_rgb(reader->png);
    png_set_expand_gray_1_2_4_to_8(reader->png);
    png_set_strip_16(reader->png);
    png_set_gray_to_rgb(reader->png);
    png_set_strip_alpha(reader->png);
    png_read_update_info(reader->png, reader->info);
}

static esp_status png_decode(png_reader *reader)
{
    decoder *from = reader->from;
    png_structp png = reader->png;
    png_set_read_fn(png, from, png_take);
    png_set_user_limits(png, ESP_IMAGE_MAX_SIDE, ESP_IMAGE_MAX_SIDE);
    png_set_chunk_malloc_max(png, 8 << 20);
    png_read_info(png, reader->info);
    TRY(take_pixels(from, png_get_image_width(png, reader->info),
                    png_get_image_height(png, reader->info)));
    int passes = png_set_interlace_handling(png);
    png_to_rgb(reader);
    if (png_get_rowbytes(png, reader->info) != (size_t)from->width * 3) {
        png_error(png, "an unknown kind of pixels");
    }
    for (int pass = 0; pass < passes; pass++) {
        for (int64_t row = 0; row < from->height; row++) {
            png_read_row(png, from->pixels + (size_t)(row * from->width) * 3, NULL);
        }
    }
    png_read_end(png, reader->info);
    png_uint_32 bytes = 0;
    png_bytep exif = NULL;
    if (png_get_eXIf_1(png, reader->info, &bytes, &exif) != 0) {
        from->orientation = exif_orientation(exif, bytes);
    }
    return ESP_OK;
}

static esp_status read_png(decoder *from)
{
    png_reader reader = {.from = from};
    volatile esp_status status = ESP_OK;
    reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, from, png_failed, png_warned);
    reader.info = reader.png != NULL ? png_create_info_struct(reader.png) : NULL;
    if (reader.info == NULL) {
        png_destroy_read_struct(&reader.png, NULL, NULL);
        return cli_fail_memory(from->error, "an image");
    }
    if (setjmp(from->jump) == 0) {
        status = png_decode(&reader);
    } else {
        status = from->over_limit ? too_large(from, "too many") : damaged(from);
    }
    png_destroy_read_struct(&reader.png, &reader.info, NULL);
    return status;
}

/* ---- files ---- */

static esp_status unreadable(const char *path, const char *why, esp_error *error)
{
    return cli_fail(error, ESP_BAD_FILE, "image.unreadable",
                    "%s: %s; a JPEG or PNG file was expected", path, why);
}

static esp_status read_bytes(int descriptor, const char *path, unsigned char **data, size_t *bytes,
                             esp_error *error)
{
    struct stat status;
    if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
        return unreadable(path, "it is no file", error);
    }
    if (status.st_size < 8 || status.st_size > MOST_FILE_BYTES) {
        return unreadable(
            path, status.st_size < 8 ? "it is empty or nearly so" : "it is larger than 512 MiB",
            error);
    }
    size_t size = (size_t)status.st_size, used = 0;
    unsigned char *read_data = malloc(size);
    if (read_data == NULL) {
        return cli_fail_memory(error, path);
    }
    while (used < size) {
        ssize_t got = read(descriptor, read_data + used, size - used);
        if (got <= 0 && !(got < 0 && errno == EINTR)) {
            free(read_data);
            return unreadable(path, got == 0 ? "it shrank while it was read" : strerror(errno),
                              error);
        }
        used += got > 0 ? (size_t)got : 0;
    }
    *data = read_data;
    *bytes = size;
    return ESP_OK;
}

static esp_status decode(decoder *from)
{
    static const unsigned char jpeg[] = {0xff, 0xd8, 0xff};
    static const unsigned char png[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    if (memcmp(from->data, jpeg, sizeof jpeg) == 0) {
        return read_jpeg(from);
    }
    if (memcmp(from->data, png, sizeof png) == 0) {
        return read_png(from);
    }
    return cli_fail(from->error, ESP_BAD_FILE, "image.unknown_format",
                    "%s: this is neither a JPEG nor a PNG file; convert it to one of them",
                    from->path);
}

esp_status image_file_read(const char *path, image_file *file, esp_error *error)
{
    decoder from = {.path = path, .error = error, .orientation = 1};
    unsigned char *data = NULL;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) {
        return unreadable(path, strerror(errno), error);
    }
    esp_status status = read_bytes(descriptor, path, &data, &from.bytes, error);
    close(descriptor);
    TRY(status);
    from.data = data;
    status = decode(&from);
    free(data);
    if (status != ESP_OK) {
        free(from.pixels);
        return status;
    }
    file->image = (esp_image){from.width, from.height, from.pixels};
    status = image_turn(file, from.orientation, error);
    if (status != ESP_OK) {
        image_file_free(file);
    }
    return status;
}

void image_file_free(image_file *file)
{
    free((unsigned char *)(uintptr_t)file->image.pixels);
    file->image = (esp_image){0};
}
