#include "field/direct_solver/direct_device_rows.h"

#include <algorithm>

#include "field/direct_solver/direct_maps.h"

namespace dvt::cuda {
namespace {

int bits_of(int64_t values) {  // to tell 0 .. values - 1 apart
  int bits = 1;
  while (values > int64_t{1} << bits) ++bits;
  return bits;
}

constexpr char kRows[] = "the rows of the direct solver";

}  // namespace

size_t DeviceRows::bytes(const DirectSetup& setup, int64_t views) {
  const int64_t rows = views * setup.patches, cells = (setup.grid.ny - 1) * (setup.grid.nx - 1);
  return Piece<float2>::bytes(rows) + Piece<const void*>::bytes(views) + Piece<float>::bytes(2 * rows) +
         4 * Piece<uint32_t>::bytes(rows) + Piece<uint32_t>::bytes(cells + 1) +
         Piece<uint32_t>::bytes(4 * rows + 256 * ceil_div(rows, kSortTile));
}

Status DeviceRows::place(int64_t views, const float* coords, bool coords_on_device, cudaStream_t stream) {
  const int64_t before = views_ * setup_.patches, rows = views * setup_.patches;
  if (before + rows >= int64_t{1} << 31)
    return invalid_argument("the direct solver on CUDA takes fewer than 2^31 rows (views times patches), got ",
                            before + rows);
  const int64_t room = std::max(before + rows, setup_.expected_views * setup_.patches);
  DVT_RETURN_IF_ERROR(cell_.grow(arena_, room, before, stream, kRows));
  DVT_RETURN_IF_ERROR(at_.grow(arena_, room, before, stream, kRows));
  DVT_RETURN_IF_ERROR(base_.grow(arena_, room, before, stream, kRows));
  DVT_RETURN_IF_ERROR(pointers_.grow(arena_, std::max(views_ + views, setup_.expected_views), views_, stream, kRows));
  if (!coords_on_device) {
    DVT_RETURN_IF_ERROR(coords_.at_least(arena_, 2 * rows, kRows));
    DVT_CUDA(cudaMemcpyAsync(coords_.data(), coords, static_cast<size_t>(2 * rows) * sizeof(float),
                             cudaMemcpyHostToDevice, stream),
             "copying coords to the device");
    coords = coords_.data();
  }
  DVT_RETURN_IF_ERROR(locate_rows(setup_.grid, rows, coords, cell_.data() + before, at_.data() + before, stream));
  return fill(rows, 1.0f, base_.data() + before, stream);
}

Status DeviceRows::point_to(const std::vector<const void*>& features, cudaStream_t stream) {
  DVT_CUDA(cudaMemcpyAsync(pointers_.data() + views_, features.data(), features.size() * sizeof(void*),
                           cudaMemcpyHostToDevice, stream),
           "copying pointers to the device");
  return check(cudaStreamSynchronize(stream), "placing views");  // the vector may go
}

Status DeviceRows::sort_space(int64_t count, SortSpace* space) {
  const int64_t counts = 256 * ceil_div(count, kSortTile);
  DVT_RETURN_IF_ERROR(sort_.at_least(arena_, 4 * count + counts, "sorting the rows of the direct solver"));
  uint32_t* p = sort_.data();
  *space = {{p, p + count}, {p + 2 * count, p + 3 * count}, p + 4 * count};
  return Status();
}

Status DeviceRows::sort_by_cell(int64_t first, int64_t count, RowList* list, cudaStream_t stream) {
  const int64_t cells = shape(0).cells();
  SortSpace space;
  int result;
  DVT_RETURN_IF_ERROR(sort_space(count, &space));
  DVT_RETURN_IF_ERROR(cell_start_.at_least(arena_, cells + 1, kRows));
  sorted_ = sorted_by_patch_ = 0;
  DVT_RETURN_IF_ERROR(by_cell_.at_least(arena_, count, kRows));
  DVT_RETURN_IF_ERROR(
      cell_keys(count, cell_.data(), static_cast<uint32_t>(first), space.keys[0], space.values[0], stream));
  DVT_RETURN_IF_ERROR(sort_pairs(count, bits_of(cells), space, &result, stream));
  DVT_RETURN_IF_ERROR(cell_starts(count, space.keys[result], cells, cell_start_.data(), stream));
  DVT_CUDA(cudaMemcpyAsync(by_cell_.data(), space.values[result], static_cast<size_t>(count) * sizeof(uint32_t),
                           cudaMemcpyDeviceToDevice, stream),
           kRows);
  *list = {count, by_cell_.data(), cell_start_.data()};
  return Status();
}

Status DeviceRows::sort_all(bool by_patch, cudaStream_t stream) {
  const int64_t rows = views_ * setup_.patches;
  if (sorted_ != rows) {
    RowList list;
    DVT_RETURN_IF_ERROR(sort_by_cell(0, rows, &list, stream));
    sorted_ = rows;
  }
  if (!by_patch || sorted_by_patch_ == rows) return Status();
  SortSpace space;
  int result;
  DVT_RETURN_IF_ERROR(sort_space(rows, &space));
  DVT_RETURN_IF_ERROR(by_patch_.at_least(arena_, rows, kRows));
  DVT_RETURN_IF_ERROR(patch_keys(rows, by_cell_.data(), setup_.patches, space.keys[0], space.values[0], stream));
  DVT_RETURN_IF_ERROR(sort_pairs(rows, bits_of(setup_.patches), space, &result, stream));
  DVT_CUDA(cudaMemcpyAsync(by_patch_.data(), space.values[result], static_cast<size_t>(rows) * sizeof(uint32_t),
                           cudaMemcpyDeviceToDevice, stream),
           kRows);
  sorted_by_patch_ = rows;
  return Status();
}

void DeviceRows::commit(int64_t views, const RowList* list) {
  const bool all = views_ == 0;
  views_ += views;
  if (all && list) sorted_ = list->count;  // the first views' order is that of all
}

void DeviceRows::reset() { views_ = sorted_ = sorted_by_patch_ = 0; }

}  // namespace dvt::cuda
