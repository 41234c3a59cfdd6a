// What a handler is called with, in our types: the same for every platform. What belongs here: XLA's types on one side,
// ours on the other.
#ifndef BLOODCELL_CALL_H_
#define BLOODCELL_CALL_H_

#include "policy.h"
#include "xla/ffi/api/ffi.h"

// TensorFlow's own, in libtensorflow_cc.
namespace xla::ffi {
const XLA_FFI_Api* GetXlaFfiApi();
}

namespace bloodcell {

inline Type type_of(xla::ffi::DataType type) {
  switch (type) {
    case xla::ffi::DataType::PRED: return Type::kBool;
    case xla::ffi::DataType::U8: return Type::kUint8;
    case xla::ffi::DataType::S32: return Type::kInt32;
    case xla::ffi::DataType::F32: return Type::kFloat32;
    default: return Type::kOther;
  }
}

inline int output_of(xla::ffi::DataType type) {
  switch (type) {
    case xla::ffi::DataType::F32: return kFloat32;
    case xla::ffi::DataType::BF16: return kBfloat16;
    case xla::ffi::DataType::F16: return kFloat16;
    case xla::ffi::DataType::U8: return kUint8;
    default: return -1;
  }
}

// Reads the steps `words` on `images`, whose operands are `fields`; `type` is that of the result. Follows no pointer.
inline xla::ffi::Error read_call(xla::ffi::Span<const int64_t> words, xla::ffi::AnyBuffer images,
                                 xla::ffi::RemainingArgs fields, xla::ffi::Result<xla::ffi::AnyBuffer> out,
                                 Program* program, int* type) {
  namespace ffi = xla::ffi;
  const auto shape = images.dimensions();
  if (images.element_type() != ffi::DataType::U8 || shape.size() != 4 || shape[3] != 3) {
    return ffi::Error::InvalidArgument("expected images as uint8 [B, H, W, 3]");
  }
  *type = output_of(out->element_type());
  if (*type < 0 || out->element_count() != images.element_count()) {
    return ffi::Error::InvalidArgument("expected a result of the images' shape");
  }
  std::vector<Operand> operands;
  for (size_t number = 0; number < fields.size(); ++number) {
    const auto field = fields.get<ffi::AnyBuffer>(number);
    if (!field.has_value()) return field.error();
    const auto dims = field->dimensions();
    const i64 rows = dims.size() ? dims[0] : 1;
    i64 width = 1;
    for (size_t axis = 1; axis < dims.size(); ++axis) width *= dims[axis];
    operands.push_back({field->untyped_data(), type_of(field->element_type()), rows, width});
  }
  static_assert(sizeof(i64) == sizeof(int64_t));
  const std::string wrong = read_program(reinterpret_cast<const i64*>(words.begin()), words.size(), shape[0], shape[1],
                                         shape[2], operands, program);
  return wrong.empty() ? ffi::Error::Success() : ffi::Error::InvalidArgument(wrong);
}

}  // namespace bloodcell

#endif  // BLOODCELL_CALL_H_
