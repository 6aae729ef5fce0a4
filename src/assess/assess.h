/* The door of src/assess: judging models and folders. */
#ifndef ESP_SRC_ASSESS_H
#define ESP_SRC_ASSESS_H

#include <espalier/assess.h>

#include "base/base.h"
#include "tensor/tensor.h"

#endif
