/* The door of src/base: what every room may use. Lowest layer; includes nothing of ours but the
 * public base header. */
#ifndef ESP_SRC_BASE_H
#define ESP_SRC_BASE_H

#include <espalier/base.h>

#include "base/bijection.h"
#include "base/buffer.h"
#include "base/checked.h"
#include "base/context.h"
#include "base/cpu_features.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "base/file.h"
#include "base/glob.h"
#include "base/halffloat.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/random.h"
#include "base/threads.h"
#include "base/timer.h"
#include "base/tuning_table.h"

#define ESP_MIN(a, b) ((a) < (b) ? (a) : (b))
#define ESP_MAX(a, b) ((a) > (b) ? (a) : (b))
#define ESP_COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

#endif
