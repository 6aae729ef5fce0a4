/* The door of src/model: architectures, tokenizers, sessions. */
#ifndef ESP_SRC_MODEL_H
#define ESP_SRC_MODEL_H

#include <espalier/model.h>

#include "model/shrink.h"
#include "model/turn.h"
#include "model/values.h"
#include "model/walk.h"

/* The context that the model's device was opened from. */
esp_context *esp_model_context(const esp_model *model);

#endif
