SOFTMAX_RULES = ("epsilon", "z-plus", "z-plus-bias", "cp")
