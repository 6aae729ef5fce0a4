/* UTF-8 repair, error lines, exit codes. */
#include "output.h"

#include <errno.h>
#include <string.h>

#include "cli.h"

/* ---- UTF-8 ---- */

static void put_replacement(utf8_stream *utf8)
{
    fputs("\xef\xbf\xbd", utf8->stream);
    utf8->have = utf8->need = 0;
}

static int sequence_length(unsigned char lead)
{
    return lead < 0x80                    ? 1
           : lead >= 0xc2 && lead <= 0xdf ? 2
           : lead >= 0xe0 && lead <= 0xef ? 3
           : lead >= 0xf0 && lead <= 0xf4 ? 4
                                          : 0;
}

/* Whether byte may follow what is held: the second byte rules out overlong forms, surrogates and
 * code points above U+10FFFF. */
static bool may_follow(const utf8_stream *utf8, unsigned char byte)
{
    unsigned char lead = utf8->held[0], least = 0x80, most = 0xbf;
    if (utf8->have == 1) {
        least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    }
    return byte >= least && byte <= most;
}

static void push_byte(utf8_stream *utf8, unsigned char byte)
{
    if (utf8->have > 0 && !may_follow(utf8, byte)) {
        put_replacement(utf8);
    }
    if (utf8->have == 0) {
        utf8->need = sequence_length(byte);
        if (utf8->need == 0) {
            put_replacement(utf8);
            return;
        }
    }
    utf8->held[utf8->have++] = byte;
    if (utf8->have == utf8->need) {
        fwrite(utf8->held, 1, (size_t)utf8->have, utf8->stream);
        utf8->have = utf8->need = 0;
    }
}

void utf8_push(utf8_stream *utf8, const char *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        push_byte(utf8, (unsigned char)bytes[i]);
    }
}

void utf8_end(utf8_stream *utf8)
{
    if (utf8->have > 0) {
        put_replacement(utf8);
    }
}

/* ---- errors ---- */

int output_exit_code(esp_status status)
{
    switch (status) {
    case ESP_OK:
        return 0;
    case ESP_BAD_ARGUMENT:
        return 2;
    case ESP_BAD_FILE:
        return 3;
    case ESP_UNSUPPORTED:
        return 4;
    case ESP_CHECK_FAILED:
        return 5;
    case ESP_OUT_OF_MEMORY:
        return 6;
    case ESP_CANCELLED:
        return 130;
    case ESP_FAILED:
    case ESP_IO:
        break;
    }
    return 1;
}

void output_error(const esp_error *error, esp_status status, bool json)
{
    if (json) {
        cli_record record = record_begin("error");
        record_text(&record, "status", esp_status_name(status));
        record_text(&record, "code", error->code);
        record_text(&record, "message", error->message);
        record_int(&record, "exit_code", output_exit_code(status));
        (void)!record_print(&record, NULL); /* the line on stderr follows anyway */
    }
    fprintf(stderr, "espalier: error: %s [%s]\n", error->message, error->code);
}

bool output_finish(void)
{
    bool failed = ferror(stdout) != 0;
    errno = 0;
    failed |= fflush(stdout) != 0;
    int why = errno;
    if (failed && why != EPIPE) {
        fprintf(stderr,
                "espalier: error: standard output could not be written%s%s "
                "[output.write_failed]\n",
                why != 0 ? ": " : "", why != 0 ? strerror(why) : "");
    }
    return !failed;
}
