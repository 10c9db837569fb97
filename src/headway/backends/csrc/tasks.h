// What every kernel does around its arithmetic: tasks on threads, rows as products need them, the dtypes of a call.
#pragma once

#include "dense.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <atomic>
#include <exception>
#include <type_traits>

namespace headway {

// Rows as the products need them: in place if they fit, packed otherwise.
template <typename T>
struct Rows {
  const T* start;
  int64_t stride;
};

template <typename T, typename In>
Rows<T> rows_of(const In* from, int64_t stride, int64_t rows, int64_t width, int64_t wide, T* room) {
  if constexpr (std::is_same_v<T, In>) {
    if (width == wide) return {from, stride};
  }
  pack<T, In>(room, wide, from, stride, rows, width, T(1));
  return {room, wide};
}

// Run `work(task, room)` for every task on all threads, the next free thread taking the next task.
template <typename Work>
void run(int64_t tasks, size_t bytes, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(tasks, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Scratch room(bytes);
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
      work(task, room);
      room.clear();
    }
  });
}

// Run `work` for the accumulator's type and the inputs'. Returns 0, or 1 with a message of at most 255 characters.
// kind: 0 float32, 1 bfloat16, 2 float16, 3 float64.
template <typename Work>
int by_kind(int kind, char* message, const Work& work) {
  try {
    switch (kind) {
      case 0:
        work.template operator()<float, float>();
        break;
      case 1:
        work.template operator()<float, c10::BFloat16>();
        break;
      case 2:
        work.template operator()<float, c10::Half>();
        break;
      default:
        work.template operator()<double, double>();
    }
    return 0;
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), 255);
    message[255] = 0;
    return 1;
  }
}

}  // namespace headway
