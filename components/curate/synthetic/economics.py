"""Economics with worked numbers: markets, money over time, firms, trade, aggregates.

The verifier never uses the formula of the solution where the answer can be put back into what the problem states.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from random import Random

from components.curate.synthetic.item import Item, problem
from components.curate.synthetic.wording import COUNTRIES, FIRMS, GOODS, PEOPLE, TOWNS, choose, decimal, is_or_about, times

FAMILY = "economics"
_NUMBER = "Answer with the number alone."
_ROUNDED = "Answer with the number alone, rounded to two decimals if need be."


def equilibrium(random: Random) -> Item:
    """Linear supply and demand."""
    price, slope_d, slope_s = random.randint(3, 60), random.randint(1, 9), random.randint(1, 9)
    fixed_s = random.randint(-2 * price, 60)
    fixed_d = fixed_s + (slope_d + slope_s) * price
    quantity = fixed_d - slope_d * price
    if quantity <= 0:
        return equilibrium(random)
    good, town = random.choice(GOODS), random.choice(TOWNS)
    asks_price = random.random() < 0.5
    supply = f"{fixed_s} + {times(slope_s, 'P')}" if fixed_s >= 0 else f"{times(slope_s, 'P')} - {-fixed_s}"
    text = choose(
        random,
        f"In {town} the weekly demand for {good} is Qd = {fixed_d} - {times(slope_d, 'P')} and the supply is Qs = {supply}, where P is the "
        "price in dollars.",
        f"Buyers in {town} want Qd = {fixed_d} - {times(slope_d, 'P')} {good} at the price P, and sellers offer Qs = {supply}.",
        f"The market for {good} has the demand curve Qd = {fixed_d} - {times(slope_d, 'P')} and the supply curve Qs = {supply}.") + " " + (
        choose(random, "At what price does the market clear?", "What is the equilibrium price?",
               "Find the price at which nobody is left wanting to buy or sell more.") if asks_price else
        choose(random, "How many are traded in equilibrium?", "What quantity changes hands when the market clears?"))
    steps = choose(
        random, "The market clears where the two quantities are the same.", "In equilibrium what is demanded equals what is supplied.",
        "Set demand equal to supply.") + (
        f" Bringing the price to one side gives {slope_d + slope_s}P = {fixed_d - fixed_s}, and so the price is "
        f"{fixed_d - fixed_s} / {slope_d + slope_s} = {price} dollars. ") + choose(
        random, f"At that price buyers take {fixed_d} - {slope_d} * {price} = {quantity} of the {good}.",
        f"Put into the demand curve this is {fixed_d} - {slope_d} * {price} = {quantity} {good}.") + choose(
        random, f" The supply curve agrees: {slope_s} * {price} + ({fixed_s}) = {quantity}.", " Sellers offer just as many.",
        " At a higher price some would stay unsold, at a lower one some buyers would go away with nothing.")
    conditions = ([f"{fixed_d} - {slope_d} * answer == {fixed_s} + {slope_s} * answer"] if asks_price else
                  [f"({fixed_d} - answer) / {slope_d} == (answer - ({fixed_s})) / {slope_s}"])
    return problem(random, FAMILY, "equilibrium", text, steps, str(price if asks_price else quantity),
                   {"kind": "holds", "values": {}, "conditions": conditions}, _NUMBER)


def tax(random: Random) -> Item:
    """Who bears a tax per unit."""
    slope_d, slope_s = random.randint(1, 8), random.randint(1, 8)
    levy = (slope_d + slope_s) * random.randint(1, 4)
    burden, before = Fraction(levy * slope_s, slope_d + slope_s), random.randint(10, 80)
    fixed_s = random.randint(0, 40)
    fixed_d = fixed_s + (slope_d + slope_s) * before
    paid = before + int(burden)
    if fixed_d - slope_d * paid <= 0 or paid <= levy:  # the tax would end all trade, or leave sellers less than nothing
        return tax(random)
    good, country = random.choice(GOODS), random.choice(COUNTRIES)
    text = choose(
        random,
        f"{country} puts a tax of {levy} dollars on each of the {good} sold, to be paid by the sellers.",
        f"The government of {country} collects {levy} dollars from sellers for every unit in the market for {good}.") + (
        f" Demand is Qd = {fixed_d} - {times(slope_d, 'P')}, and before the tax supply was Qs = {fixed_s} + "
        f"{times(slope_s, 'P')}. ") + choose(
        random, "What do buyers pay per unit after the tax?", "To what does the price for the buyers rise?")
    steps = (f"Before the tax the price was ({fixed_d} - {fixed_s}) / ({slope_d} + {slope_s}) = {before} dollars. " + choose(
        random, f"With the tax a seller who is paid P keeps only P less {levy}, so that supply becomes a function of that smaller amount.",
        f"Sellers now look at what is left to them, which is {levy} dollars less than what buyers pay.") +
        f" Equating the two again gives {slope_d + slope_s}P = {fixed_d - fixed_s + slope_s * levy}, that is, a price of "
        f"{fixed_d - fixed_s + slope_s * levy} / {slope_d + slope_s} = {paid} dollars. " + choose(
        random, f"Of the tax buyers bear {paid} - {before} = {paid - before} dollars, sellers the other "
        f"{levy} - {paid - before} = {levy - paid + before}.",
        f"The buyers' part of the tax is {paid - before} dollars; the less they react to the price, the larger it is."))
    return problem(random, FAMILY, "tax", text, steps, str(paid), {
        "kind": "holds", "values": {},
        "conditions": [f"{fixed_d} - {slope_d} * answer == {fixed_s} + {slope_s} * (answer - {levy})",
                       f"{fixed_d} - {slope_d} * answer > 0", f"answer > {levy}"]}, _NUMBER)


def compound_interest(random: Random) -> Item:
    """A deposit that grows yearly."""
    amount, rate, years = 50 * random.randint(4, 200), random.randint(1, 9), random.randint(2, 5)
    who, town = random.choice(PEOPLE), random.choice(TOWNS)
    value = amount * Fraction(100 + rate, 100)**years
    text = choose(
        random,
        f"{who} puts {amount} dollars into a savings account that pays {rate} percent a year, added to the account at the end of each "
        "year.",
        f"A bank in {town} pays {rate} percent interest per year, compounded yearly, and {who} deposits {amount} dollars.",
        f"{who} lends {amount} dollars at {rate} percent a year; the interest is not paid out but earns interest itself.") + " " + choose(
        random, f"How much is there after {years} years?", f"What has it grown to when {years} years are over?",
        f"Find the balance at the end of year {years}.")
    steps = choose(random, f"Each year multiplies the balance by 1 + {rate} / 100 = {decimal(Fraction(100 + rate, 100))}.",
                   f"A year's growth is a factor of 1 + {rate} / 100 = {decimal(Fraction(100 + rate, 100))}.")
    for year in range(1, years + 1):
        steps += " " + choose(random, f"After year {year} the account holds", f"At the end of year {year} it is",
                              f"Year {year} ends with") + (
            f" {decimal(amount * Fraction(100 + rate, 100)**year)} dollars.")
    steps += f" In one step: {amount} * {decimal(Fraction(100 + rate, 100))} ** {years} {is_or_about(value)}. " + choose(
        random, f"Simple interest would have brought only {amount} * {rate} * {years} / 100 "
                f"{is_or_about(Fraction(amount * rate * years, 100))}"
        " dollars of interest.", "The gain over simple interest is the interest on interest.", "Amounts are rounded to the cent.")
    return problem(random, FAMILY, "compound interest", text, steps, decimal(value),
                   {"kind": "value", "expression": f"{amount} * (1 + {rate}/100) ** {years}"}, _ROUNDED)


def present_value(random: Random) -> Item:
    """What a later payment is worth today."""
    payment, rate, years = 100 * random.randint(3, 90), random.choice((2, 4, 5, 8, 10, 20, 25)), random.randint(1, 4)
    who = random.choice(PEOPLE)
    value = payment / Fraction(100 + rate, 100)**years
    wait = "a year" if years == 1 else f"{years} years"
    text = choose(
        random, f"{who} will receive {payment} dollars in {wait}.", f"A bond that {who} holds pays {payment} dollars once, in {wait}.",
        f"A customer owes {who} {payment} dollars, due in {wait}.") + " " + choose(
        random, f"Money can be invested at {rate} percent a year. What is the payment worth today?",
        f"With a discount rate of {rate} percent, what is its present value?")
    factor = Fraction(100 + rate, 100)**years
    steps = choose(random, "A sum today grows by the interest rate every year, so a later sum is divided by the same growth.",
                   "Discounting is compounding backwards.", "The question is what would have to be invested now to have that sum then.") + (
        f" The growth factor over {wait} is {decimal(Fraction(100 + rate, 100))} ** {years} {is_or_about(factor, 6)}. "
        f"The present value is {payment} / {decimal(Fraction(100 + rate, 100))} ** {years} {is_or_about(value)} dollars. ") + choose(
        random, "A higher rate would make it smaller.",
            f"Waiting costs {who} {decimal(payment - Fraction(decimal(value)))} dollars of value.",
        "The farther away a payment lies, the less it counts now.")
    return problem(random, FAMILY, "present value", text, steps, decimal(value), {
        "kind": "holds", "values": {},
        "conditions": [f"abs(answer * (1 + {rate}/100) ** {years} - {payment}) <= (1 + {rate}/100) ** {years} / 200"]}, _ROUNDED)


def elasticity(random: Random) -> Item:
    """Midpoint elasticity of demand."""
    before_p, before_q = random.randint(4, 40), 10 * random.randint(4, 60)
    after_p = before_p + random.choice((1, 2, 3, 4, 5))
    after_q = before_q - random.randint(1, 3 * before_q // 4)
    good, firm = random.choice(GOODS), random.choice(FIRMS)
    change_q = Fraction(2 * (after_q - before_q), after_q + before_q)
    change_p = Fraction(2 * (after_p - before_p), after_p + before_p)
    value = abs(change_q / change_p)
    text = choose(
        random, f"A {firm} raises the price of its {good} from {before_p} to {after_p} dollars, and weekly sales fall from {before_q} to "
                f"{after_q}.", f"When {good} cost {before_p} dollars, a {firm} sold {before_q} a month; at {after_p} dollars it sells "
                               f"{after_q}.") + (
        " " + choose(random, "How elastic is demand, in absolute value, by the midpoint method?",
                     "Compute the size of the price elasticity of demand with the midpoint formula."))
    verdict = "elastic, and revenue falls" if value > 1 else "inelastic, and revenue does not fall" if value < 1 else "of unit elasticity"
    steps = choose(random, "The midpoint method relates each change to the mean of its two ends.",
                   "Both changes are measured against the average of before and after.") + (
        f" Quantity changes by {after_q} - {before_q} = {after_q - before_q} on a mean of ({before_q} + {after_q}) / 2 = "
        f"{decimal(Fraction(before_q + after_q, 2))}, which is {decimal(100 * change_q)} percent. "
        f"The price changes by {after_p} - {before_p} = {after_p - before_p} on a mean of ({before_p} + {after_p}) / 2 = "
        f"{decimal(Fraction(before_p + after_p, 2))}, that is {decimal(100 * change_p)} percent. ") + choose(
        random, f"Their ratio has the size {decimal(value)}: demand is {verdict}.",
        f"Dividing the one by the other and leaving the sign away gives {decimal(value)}. Demand is {verdict}.")
    return problem(random, FAMILY, "elasticity", text, steps, decimal(value), {
        "kind": "value", "expression": f"abs((({after_q} - {before_q}) / ({after_q} + {before_q})) / "
                                       f"(({after_p} - {before_p}) / ({after_p} + {before_p})))"}, _ROUNDED)


def comparative_advantage(random: Random) -> Item:
    """Who should make what."""
    one, two = random.sample(PEOPLE if random.random() < 0.6 else COUNTRIES, 2)
    good, other = random.sample(GOODS, 2)
    a, b, c, d = (random.randint(2, 24) for _ in range(4))
    if a * d == b * c:
        return comparative_advantage(random)
    best = one if Fraction(b, a) < Fraction(d, c) else two
    text = choose(
        random, f"In a day {one} can make {a} {good} or {b} {other}, and {two} can make {c} {good} or {d} {other}.",
        f"{one} produces {a} {good} per day, or {b} {other} instead; for {two} the figures are {c} and {d}.",
        f"A day's work of {one} yields either {a} {good} or {b} {other}. A day's work of {two} yields either {c} {good} or {d} "
        f"{other}.") + (
        " " + choose(random, f"Who has the comparative advantage in making {good}?", f"Which of the two should specialise in {good}?"))
    absolute = one if a > c else two if c > a else ""
    steps = choose(random, "What counts is the opportunity cost: what is given up for one unit.",
                   "Comparative advantage lies with whoever gives up less.") + (
        f" For {one}, making {a} {good} means doing without {b} {other}, so each costs {b} / {a} {is_or_about(Fraction(b, a))} {other}. "
        f"For {two} each costs {d} / {c} {is_or_about(Fraction(d, c))} {other}. The cost is lower for {best}. ") + (
        f"That {absolute} makes more {good} in a day is an absolute advantage and does not decide it." if absolute else
        f"Both make equally many {good} in a day; the difference lies in the {other}.")
    return problem(random, FAMILY, "comparative advantage", text, steps, best, {
        "kind": "pick", "by": "least", "options": {one: f"{b} / {a}", two: f"{d} / {c}"}}, "Answer with the name alone.")


def break_even(random: Random) -> Item:
    """Units at which revenue covers cost."""
    margin, units, variable = random.randint(2, 30), random.randint(12, 400), random.randint(1, 50)
    fixed, price = margin * units, variable + margin
    good, firm, town = random.choice(GOODS), random.choice(FIRMS), random.choice(TOWNS)
    text = choose(
        random, f"A {firm} in {town} has fixed costs of {fixed} dollars a month. Its {good} cost {variable} dollars each to make and sell "
                f"for {price} "
                "dollars.", f"Rent and wages cost a {firm} {fixed} dollars per month whatever it sells. It earns {price} dollars for each "
                            f"of its {good} and spends {variable} dollars on materials for it.") + " " + choose(
        random, "How many must it sell to break even?", "At what monthly quantity is the profit zero?")
    steps = choose(random, "Every unit sold leaves a margin that goes towards the fixed costs.",
                   "Profit is the margin per unit times the quantity, less the fixed costs.") + (
        f" The margin is {price} - {variable} = {margin} dollars. The fixed costs are covered after {fixed} / {margin} = {units} "
        "units. ") + (
        choose(random, f"Check: revenue is {price} * {units} = {price * units} and total cost is {fixed} + {variable} * {units} = "
               f"{fixed + variable * units}.", f"From the next unit on, each brings {margin} dollars of profit.",
               f"If the price fell by one dollar, the margin would be {margin - 1} and the break-even quantity larger."))
    return problem(random, FAMILY, "break even", text, steps, str(units), {
        "kind": "holds", "values": {}, "conditions": [f"{price} * answer == {fixed} + {variable} * answer"]}, _NUMBER)


def monopoly(random: Random) -> Item:
    """Profit-maximising quantity, linear demand, constant cost."""
    slope, quantity, cost = random.randint(1, 6), random.randint(4, 60), random.randint(2, 40)
    intercept = cost + 2 * slope * quantity
    price = intercept - slope * quantity
    good, town = random.choice(GOODS), random.choice(TOWNS)
    text = choose(
        random, f"The only seller of {good} in {town} faces the demand P = {intercept} - {times(slope, 'Q')} and makes each unit for "
                f"{cost} dollars.",
        f"A monopolist sells {good}. Demand is P = {intercept} - {times(slope, 'Q')}, marginal cost is {cost} dollars, and there are no "
        "fixed costs.") + (
        " " + choose(random, "Which quantity earns the most?", "Find the quantity that maximises profit."))
    steps = choose(random, "Marginal revenue has the same intercept as demand and twice its slope.",
                   "Revenue is price times quantity, so one unit more also lowers the price of all the others.") + (
        f" Marginal revenue is {intercept} - {2 * slope}Q. It equals the marginal cost of {cost} at Q = "
        f"({intercept} - {cost}) / (2 * {slope}) = {quantity}. The price is then {intercept} - {slope} * {quantity} = {price} dollars, "
        f"and the profit ({price} - {cost}) * {quantity} = {(price - cost) * quantity} dollars. ") + choose(
        random, "One unit more or less would earn less.", f"With many competing sellers the price would fall to {cost} dollars.")
    profit = f"({intercept} - {slope} * {{0}} - {cost}) * {{0}}"
    return problem(random, FAMILY, "monopoly", text, steps, str(quantity), {
        "kind": "holds", "values": {}, "conditions": [
            f"{profit.format('answer')} > {profit.format(f'(answer {sign} 1)')}" for sign in "+-"]}, _NUMBER)


def real_growth(random: Random) -> Item:
    """Nominal and real output."""
    country, base = random.choice(COUNTRIES), 10 * random.randint(20, 300)
    deflator, volume = random.choice((102, 104, 105, 108, 110, 112, 120, 125)), random.randint(98, 112)
    real = Fraction(base * volume, 100)
    nominal = real * deflator / 100
    text = choose(
        random, f"Nominal output of {country} was {base} million dollars in the base year and is {decimal(nominal, 4)} million now.",
        f"{country} produced goods worth {base} million dollars in the base year; at today's prices it produces "
        f"{decimal(nominal, 4)} million.") + (f" The price index has risen from 100 to {deflator}. ") + choose(
        random, "What is real output now, in millions of base-year dollars?", "At the prices of the base year, how many millions is that?")
    growth = 100 * (real - base) / base
    steps = choose(random, "Real output takes the rise of prices out of the nominal figure.",
                   "Deflate: divide by the index and multiply by 100.") + (
        f" That gives {decimal(nominal, 4)} * 100 / {deflator} {is_or_about(real)} million. ") + choose(
        random, f"Against the base year this is a change of {decimal(growth)} percent, while the nominal figure changed by "
        f"{decimal(100 * (nominal - base) / base)} percent.", f"Compared with {base} million, output in real terms has "
        f"{'grown' if real > base else 'shrunk' if real < base else 'stood still'}.")
    return problem(random, FAMILY, "real output", text, steps, decimal(real), {
        "kind": "holds", "values": {}, "conditions": [f"answer * {deflator} / 100 == {decimal(nominal, 4)}"]}, _ROUNDED)


def multiplier(random: Random) -> Item:
    """Spending that is spent again."""
    propensity, spent = random.choice((50, 60, 75, 80, 90)), 4 * random.randint(5, 120)
    country, project = random.choice(COUNTRIES), random.choice(("bridges", "schools", "railways", "harbours", "hospitals", "parks"))
    total = Fraction(spent * 100, 100 - propensity)
    text = choose(
        random, f"The government of {country} spends {spent} million dollars more on {project}.",
        f"{country} decides to build {project} for {spent} million dollars.") + " " + choose(
        random, f"People spend {propensity} percent of any additional income. By how many millions does income rise in the end?",
        f"With a marginal propensity to consume of {decimal(Fraction(propensity, 100))}, what is the whole rise of income, in millions?")
    second, third = Fraction(spent * propensity, 100), Fraction(spent * propensity**2, 10_000)
    steps = choose(random, "What one person spends is another's income, part of which is spent again.",
                   "The rounds of spending form a geometric series.") + (
        f" The first round is {spent} million, the second {spent} * {propensity} / 100 {is_or_about(second)}, the third "
        f"{decimal(second)} * {propensity} / 100 {is_or_about(third)}, and so on. The sum is the first round divided by the share that is "
        f"saved, {spent} / (1 - {decimal(Fraction(propensity, 100))}) {is_or_about(total)} million. ") + choose(
        random, f"The multiplier is 1 / (1 - {decimal(Fraction(propensity, 100))}) {is_or_about(Fraction(100, 100 - propensity))}.",
        "Taxes and imports, left out here, would make it smaller.")
    return problem(random, FAMILY, "multiplier", text, steps, decimal(total), {
        "kind": "holds", "values": {}, "conditions": [f"answer == {spent} + answer * {propensity} / 100"]}, _ROUNDED)


TOPICS: tuple[Callable[[Random], Item], ...] = (
    equilibrium, tax, compound_interest, present_value, elasticity, comparative_advantage, break_even, monopoly, real_growth, multiplier,
)
