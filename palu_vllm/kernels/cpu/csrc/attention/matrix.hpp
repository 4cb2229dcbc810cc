// Small float32 matrix products whose sums do not depend on the number of threads.
#pragma once
#include <ATen/cpu/vec/vec.h>

namespace palu {

using Vec = at::vec::Vectorized<float>;
constexpr int WIDE = Vec::size();
constexpr int COLUMNS = 32; // what the number of columns of a product is a multiple of

// `keep`: null, or what each row of the result is multiplied by before the product is added.
// Loops over rows are unrolled by name: else GCC keeps sums in memory.
template <int COUNT>
void product_rows(int64_t inner, const float* a, int64_t a_row, const float* b, int64_t b_row, float* c, int64_t c_row,
                  const float* keep) {
  Vec sum[COUNT][2];
#pragma GCC unroll 8
  for (int row = 0; row < COUNT; row++) sum[row][0] = sum[row][1] = Vec(0.f);
  for (int64_t k = 0; k < inner; k++, b += b_row) {
    Vec first = Vec::loadu(b), second = Vec::loadu(b + WIDE);
#pragma GCC unroll 8
    for (int row = 0; row < COUNT; row++) {
      Vec number(a[row * a_row + k]);
      sum[row][0] = at::vec::fmadd(number, first, sum[row][0]);
      sum[row][1] = at::vec::fmadd(number, second, sum[row][1]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < COUNT; row++)
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      float* to = c + row * c_row + half * WIDE;
      if (keep) sum[row][half] = at::vec::fmadd(Vec(keep[row]), Vec::loadu(to), sum[row][half]);
      sum[row][half].store(to);
    }
}

// c [rows, columns] = keep * c + a [rows, inner] b [inner, columns]; columns a multiple of COLUMNS.
inline void product(int64_t rows, int64_t columns, int64_t inner, const float* a, int64_t a_row, const float* b,
                    int64_t b_row, float* c, int64_t c_row, const float* keep = nullptr) {
  constexpr int MOST = 6; // rows of two vectors are twelve sums in registers
  using Rows = decltype(&product_rows<1>);
  static constexpr Rows some[MOST + 1] = {nullptr,         product_rows<1>, product_rows<2>, product_rows<3>,
                                          product_rows<4>, product_rows<5>, product_rows<6>};
  for (int64_t column = 0; column < columns; column += 2 * WIDE)
    for (int64_t row = 0; row < rows; row += MOST) {
      int64_t count = std::min<int64_t>(MOST, rows - row);
      some[count](inner, a + row * a_row, a_row, b + column, b_row, c + row * c_row + column, c_row,
                  keep ? keep + row : nullptr);
    }
}

} // namespace palu
