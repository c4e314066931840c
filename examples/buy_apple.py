"""Shopping as a computational graph (*Deep Learning from Scratch*, sections 5.4.1 and 5.4.2)."""

from fastgrad import AddLayer, MulLayer


def two_apples():
    apple_layer, tax_layer = MulLayer(), MulLayer()
    price = tax_layer.forward(apple_layer.forward(100, 2), 1.1)
    d_apples, d_tax = tax_layer.backward(1)
    d_apple, d_count = apple_layer.backward(d_apples)
    print(f"two apples at 100 yen, 10% tax: {price:.0f} yen")
    print(f"a yen more an apple: {d_apple:.1f}; an apple more: {d_count:.0f}; the tax: {d_tax:.0f}")


def two_apples_and_three_oranges():
    apple_layer, orange_layer, tax_layer = MulLayer(), MulLayer(), MulLayer()
    add_layer = AddLayer()
    fruit = add_layer.forward(apple_layer.forward(100, 2), orange_layer.forward(150, 3))
    price = tax_layer.forward(fruit, 1.1)
    d_fruit, d_tax = tax_layer.backward(1)
    d_apples, d_oranges = add_layer.backward(d_fruit)
    d_apple, d_apple_count = apple_layer.backward(d_apples)
    d_orange, d_orange_count = orange_layer.backward(d_oranges)
    print(f"and three oranges at 150 yen: {price:.0f} yen")
    print(
        f"apple {d_apple:.1f}, their number {d_apple_count:.0f}; "
        f"orange {d_orange:.1f}, their number {d_orange_count:.0f}; tax {d_tax:.0f}"
    )


if __name__ == "__main__":
    two_apples()
    two_apples_and_three_oranges()
