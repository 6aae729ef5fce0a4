/* Where the Hugging Face library's tables of Unicode differ from utf8proc's. Its categories are
 * those of Unicode 8, its normal forms those of Unicode 9: later characters are left as they are,
 * with no class and no decomposition. Ids of texts depend on it. */
#include <utf8proc.h>

#include "model/tokenizer.h"

typedef struct range {
    int32_t first, last;
} range;

/* Marks, punctuation and format characters that utf8proc (Unicode 15) knows and Unicode 8 did not,
 * or put elsewhere; what lies between them is unassigned. */
static const range newer[] = {
    {0x61d, 0x61d},     {0x7fd, 0x7fd},     {0x890, 0x89f},     {0x8ca, 0x8e2},
    {0x9fd, 0x9fe},     {0xa76, 0xa76},     {0xafa, 0xaff},     {0xb55, 0xb55},
    {0xc04, 0xc04},     {0xc3c, 0xc3c},     {0xc77, 0xc77},     {0xc84, 0xc84},
    {0xd00, 0xd00},     {0xd3b, 0xd3c},     {0xd81, 0xd81},     {0xeba, 0xeba},
    {0xece, 0xece},     {0x1715, 0x1715},   {0x180f, 0x180f},   {0x1885, 0x1886},
    {0x1abf, 0x1ace},   {0x1b7d, 0x1b7e},   {0x1df6, 0x1dfb},   {0x2e43, 0x2e4f},
    {0x2e52, 0x2e5d},   {0xa82c, 0xa82c},   {0xa8c5, 0xa8c5},   {0xa8ff, 0xa8ff},
    {0xa9bd, 0xa9bd},   {0x10d24, 0x10d27}, {0x10eab, 0x10ead}, {0x10efd, 0x10eff},
    {0x10f46, 0x10f50}, {0x10f55, 0x10f59}, {0x10f82, 0x10f89}, {0x11070, 0x11070},
    {0x11073, 0x11074}, {0x110c2, 0x110cd}, {0x111c9, 0x111c9}, {0x111cf, 0x111cf},
    {0x1123e, 0x1123e}, {0x11241, 0x11241}, {0x1133b, 0x1133b}, {0x11438, 0x1143f},
    {0x11442, 0x11444}, {0x11446, 0x11446}, {0x1144b, 0x1144f}, {0x1145a, 0x1145e},
    {0x11660, 0x1166c}, {0x116b9, 0x116b9}, {0x1182f, 0x11837}, {0x11839, 0x1183b},
    {0x11930, 0x11930}, {0x11938, 0x1193e}, {0x11943, 0x11946}, {0x119d4, 0x119db},
    {0x119e0, 0x119e0}, {0x119e2, 0x119e2}, {0x11a01, 0x11a0a}, {0x11a33, 0x11a38},
    {0x11a3b, 0x11a47}, {0x11a51, 0x11a56}, {0x11a59, 0x11a5b}, {0x11a8a, 0x11a96},
    {0x11a98, 0x11a9c}, {0x11a9e, 0x11aa2}, {0x11b00, 0x11b09}, {0x11c30, 0x11c3d},
    {0x11c3f, 0x11c3f}, {0x11c41, 0x11c45}, {0x11c70, 0x11c71}, {0x11c92, 0x11ca7},
    {0x11caa, 0x11cb0}, {0x11cb2, 0x11cb3}, {0x11cb5, 0x11cb6}, {0x11d31, 0x11d45},
    {0x11d47, 0x11d47}, {0x11d90, 0x11d91}, {0x11d95, 0x11d95}, {0x11d97, 0x11d97},
    {0x11ef3, 0x11ef4}, {0x11ef7, 0x11f01}, {0x11f36, 0x11f3a}, {0x11f40, 0x11f4f},
    {0x11fff, 0x11fff}, {0x12ff1, 0x12ff2}, {0x13430, 0x13440}, {0x13447, 0x13455},
    {0x16e97, 0x16e9a}, {0x16f4f, 0x16f4f}, {0x16fe2, 0x16fe2}, {0x16fe4, 0x16ff1},
    {0x1cf00, 0x1cf46}, {0x1e000, 0x1e02a}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136},
    {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef}, {0x1e944, 0x1e94a},
    {0x1e95e, 0x1e95f}};

/* Compatibility characters that came after Unicode 9. */
static const range newer_compatible[] = {
    {0x32ff, 0x32ff},   {0xa7f2, 0xa7f4},   {0xab69, 0xab69},
    {0x10781, 0x10785}, {0x10787, 0x107b0}, {0x107b2, 0x107ba},
    {0x1e030, 0x1e06d}, {0x1f16c, 0x1f16c}, {0x1fbf0, 0x1fbf9}};

/* ranges ascend. */
static bool in(const range *ranges, int count, int32_t point)
{
    int low = 0, high = count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (ranges[middle].last < point) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < count && point >= ranges[low].first;
}

bool esp_unicode_is_newer(int32_t point)
{
    return in(newer, ESP_COUNT(newer), point);
}

int esp_unicode_class(int32_t point)
{
    static const range nine[] = {{0x8d4, 0x8e1},     {0x1dfb, 0x1dfb},   {0x11442, 0x11442},
                                 {0x11446, 0x11446}, {0x11c3f, 0x11c3f}, {0x1e000, 0x1e02a},
                                 {0x1e944, 0x1e94a}};
    bool known = !esp_unicode_is_newer(point) || in(nine, ESP_COUNT(nine), point);
    return known ? utf8proc_get_property(point)->combining_class : 0;
}

size_t esp_unicode_decompose(int32_t point, bool compatible, int32_t *points)
{
    if (point < 0xa0 || in(newer, ESP_COUNT(newer), point) ||
        in(newer_compatible, ESP_COUNT(newer_compatible), point)) {
        points[0] = point;
        return 1;
    }
    int boundary = 0;
    utf8proc_option_t options =
        UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (unsigned)(compatible ? UTF8PROC_COMPAT : 0);
    utf8proc_ssize_t count =
        utf8proc_decompose_char(point, points, ESP_UNICODE_MOST_POINTS, options, &boundary);
    return count > 0 ? (size_t)count : 0;
}

/* Sorts a run of marks by their classes, which keeps the order of equals. */
static void order_run(int32_t *points, size_t count, int32_t *scratch)
{
    size_t places[257] = {0};
    for (size_t i = 0; i < count; i++) {
        places[esp_unicode_class(points[i]) + 1]++;
    }
    for (int class = 1; class < 257; class ++) {
        places[class] += places[class - 1];
    }
    for (size_t i = 0; i < count; i++) {
        scratch[places[esp_unicode_class(points[i])]++] = points[i];
    }
    memcpy(points, scratch, count * sizeof *points);
}

void esp_unicode_order_marks(int32_t *points, size_t count, int32_t *scratch)
{
    for (size_t i = 0; i < count; i++) {
        size_t begin = i;
        while (i < count && points[i] >= 0x300 && esp_unicode_class(points[i]) != 0) {
            i++;
        }
        if (i - begin > 1) {
            order_run(points + begin, i - begin, scratch);
        }
    }
}
