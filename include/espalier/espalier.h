/* espalier.h - everything at once. */
#ifndef ESPALIER_ESPALIER_H
#define ESPALIER_ESPALIER_H

#include <espalier/advise.h>
#include <espalier/assess.h>
#include <espalier/base.h>
#include <espalier/checkpoint.h>
#include <espalier/compress.h>
#include <espalier/device.h>
#include <espalier/matmul.h>
#include <espalier/model.h>
#include <espalier/pattern.h>
#include <espalier/prune.h>
#include <espalier/shrink.h>
#include <espalier/sparse.h>
#include <espalier/tensor.h>
#include <espalier/tuning.h>
#include <espalier/turn.h>
#include <espalier/vision.h>

#endif
