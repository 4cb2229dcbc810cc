// Small matrix products, in float32 or float64, whose sums do not depend on the number of threads.
#pragma once
#include <ATen/cpu/vec/vec.h>

#include <type_traits>

namespace palu {

using Vec = at::vec::Vectorized<float>;
constexpr int WIDE = Vec::size();
constexpr int COLUMNS = 32; // what the number of columns of a product is a multiple of

template <class T> struct Two { // vectors side by side
  at::vec::Vectorized<T> first, second;
};

template <class T> Two<T> load_two(const T* from) {
  return {at::vec::Vectorized<T>::loadu(from), at::vec::Vectorized<T>::loadu(from + at::vec::Vectorized<T>::size())};
}

// Float32 as float64.
template <class T, std::enable_if_t<std::is_same_v<T, double>, int> = 0> Two<double> load_two(const float* from) {
  auto wide = at::vec::convert<double, 2, float, 1>(at::vec::VectorizedN<float, 1>(Vec::loadu(from)));
  return {wide[0], wide[1]};
}

// `keep`: null, or what each row of the result is multiplied by before the product is added.
// Loops over rows are unrolled by name: else GCC keeps sums in memory.
template <class T, class B, int COUNT>
void product_rows(int64_t inner, const T* a, int64_t a_row, const B* b, int64_t b_row, T* c, int64_t c_row,
                  const T* keep) {
  using Wide = at::vec::Vectorized<T>;
  Wide sum[COUNT][2];
#pragma GCC unroll 8
  for (int row = 0; row < COUNT; row++) sum[row][0] = sum[row][1] = Wide(T(0));
  for (int64_t k = 0; k < inner; k++, b += b_row) {
    auto [first, second] = load_two<T>(b);
#pragma GCC unroll 8
    for (int row = 0; row < COUNT; row++) {
      Wide number(a[row * a_row + k]);
      sum[row][0] = at::vec::fmadd(number, first, sum[row][0]);
      sum[row][1] = at::vec::fmadd(number, second, sum[row][1]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < COUNT; row++)
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      T* to = c + row * c_row + half * Wide::size();
      if (keep) sum[row][half] = at::vec::fmadd(Wide(keep[row]), Wide::loadu(to), sum[row][half]);
      sum[row][half].store(to);
    }
}

// c [rows, columns] = keep * c + a [rows, inner] b [inner, columns]; columns a multiple of COLUMNS.
template <class T, class B>
void product(int64_t rows, int64_t columns, int64_t inner, const T* a, int64_t a_row, const B* b, int64_t b_row, T* c,
             int64_t c_row, const T* keep = nullptr) {
  constexpr int MOST = 6; // rows of two vectors are twelve sums in registers
  using Rows = decltype(&product_rows<T, B, 1>);
  static constexpr Rows some[MOST + 1] = {nullptr,
                                          product_rows<T, B, 1>,
                                          product_rows<T, B, 2>,
                                          product_rows<T, B, 3>,
                                          product_rows<T, B, 4>,
                                          product_rows<T, B, 5>,
                                          product_rows<T, B, 6>};
  for (int64_t column = 0; column < columns; column += 2 * at::vec::Vectorized<T>::size())
    for (int64_t row = 0; row < rows; row += MOST) {
      int64_t count = std::min<int64_t>(MOST, rows - row);
      some[count](inner, a + row * a_row, a_row, b + column, b_row, c + row * c_row + column, c_row,
                  keep ? keep + row : nullptr);
    }
}

} // namespace palu
