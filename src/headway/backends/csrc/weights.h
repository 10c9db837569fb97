// What Python passes to weights.cpp.
#pragma once

#include <cstdint>

namespace headway::weights {

// One call; library.py parses these lines to pass the same fields. Strides count elements, those of the last dimension
// are 1.
struct Call {
  int64_t tokens, rows, columns;
  const void *grad, *x;  // (N, rows), (N, columns)
  int64_t grad_row, x_row;
  void* out;  // (rows, columns), contiguous
};

}  // namespace headway::weights
